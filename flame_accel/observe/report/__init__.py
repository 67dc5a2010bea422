"""report.html: what one or several runs did, on one page that needs nothing else.

`read_runs` reads run folders, `curves` and `charts` make of their measurements what is drawn,
`tables` what is written, `vega` draws, and `page` and `pictures` put all of it together. Nothing
here knows more of a run than its folder does.
"""

from flame_accel.observe.report.page import REPORT_FILE, title_run, write_page, write_report
from flame_accel.observe.report.pictures import render_loss_png, write_images
from flame_accel.observe.report.vega import VegaError, render_picture

__all__ = [
    "REPORT_FILE",
    "VegaError",
    "render_loss_png",
    "render_picture",
    "title_run",
    "write_images",
    "write_page",
    "write_report",
]
