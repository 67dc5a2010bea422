"""Parses JSON that comes from outside: whatever is wrong with it is one kind of error.

`json.loads` raises three more: for text that is not UTF-8, for thousands of nested brackets and for
numbers of thousands of digits. Standard library only.
"""

import json
from typing import Any


def parse_json_text(text: str | bytes) -> Any:
    """The value of a JSON text, in UTF-8 if it is bytes.

    Raises:
        json.JSONDecodeError: It is not valid, or cannot be represented.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("not text in UTF-8", "", 0) from error
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
