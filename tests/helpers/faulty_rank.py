"""train.py on a rank whose disk fails where FAULTS says so: `RANK CALL;RANK CALL`.

A call is part of a text of `FaultyFiles.calls`; RUN is the run folder.
"""

import errno
import os
import sys
from pathlib import Path

from flame_accel.train_process import run_training
from tests.helpers.faulty_files import faulty_files

if __name__ == "__main__":
    faults = [fault.split(maxsplit=1) for fault in os.environ["FAULTS"].split(";")]
    own = [call for rank, call in faults if rank == os.environ["RANK"]]
    with faulty_files(
        Path(os.environ["RUN"]),
        lambda _, text: any(call in text for call in own),
        error=errno.ENOSPC,
    ):
        run_training(sys.argv[1:])
