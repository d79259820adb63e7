"""The machine's strip: each figure it can read, calm about those it cannot."""

import re
import time

from ot_notebook.services.system_monitor import Gpu, Reading, SystemMonitor
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.machine_strip import GIB, MachineStrip, meters, strip

T4 = Gpu("Tesla T4", 87.0, 14 * GIB, 15 * GIB, 13 * GIB, 71.0, 69.5, 1590.0)
SILENT = Gpu("<b>card</b>", None, None, None, None, None, None, None)


def reading(**changes):
    usual = {
        "time": 0.0, "cpu": 42.4, "ram_used": 6 * GIB, "ram_total": 12 * GIB,
        "process_ram": 3 * GIB, "disk_free": 40 * GIB, "disk_total": 100 * GIB, "gpus": (T4,),
    }  # fmt: skip
    return Reading(**{**usual, **changes})


def test_every_figure_has_a_text_and_a_share():
    found = [(m["label"], m["text"], m["percent"]) for m in meters(reading())]
    assert found == [
        ("GPU", "87% · 71 °C", 87.0),
        ("GPU memory", "14.0 of 15.0 GiB", 93.3),
        ("CPU", "42%", 42.4),
        ("RAM", "6.0 of 12.0 GiB", 50.0),
        ("Disk", "40.0 GiB free", 60.0),
    ]
    hints = {m["label"]: m["hint"] for m in meters(reading())}
    assert hints["GPU"] == "Tesla T4, 71 °C, 70 W, 1590 MHz"
    assert hints["GPU memory"] == "13.0 GiB by this kernel"


def test_what_holds_the_gpu_memory_is_said_where_torch_can_tell():
    held = {"weights": 4 * GIB, "optimizer": 2 * GIB, "cached": 0, "process": 13 * GIB}
    (hint,) = (m["hint"] for m in meters(reading(), held) if m["label"] == "GPU memory")
    assert hint == "13.0 GiB by this kernel, weights 4.0 GiB, optimizer 2.0 GiB"


def test_what_may_end_a_run_stands_out():
    tones = {m["label"]: m["tone"] for m in meters(reading(disk_free=4 * GIB))}
    assert tones == {
        "GPU": "idle",
        "GPU memory": "hold",
        "CPU": "idle",
        "RAM": "idle",
        "Disk": "bad",
    }


def test_several_gpus_are_numbered_and_a_silent_one_is_left_out():
    labels = [m["label"] for m in meters(reading(gpus=(T4, SILENT, T4)))]
    assert labels[:4] == ["GPU 0", "GPU 0 memory", "GPU 2", "GPU 2 memory"]


def test_nothing_known_shows_nothing_and_a_note_is_text():
    unknown = reading(
        cpu=None, ram_used=None, ram_total=None, disk_free=None, disk_total=None, gpus=()
    )
    assert meters(None) == meters(unknown) == []
    assert strip([], "") == ""
    assert "No &lt;GPU&gt;" in strip([], "No <GPU>")


def test_the_strip_follows_a_real_monitor(wire):
    source = SystemMonitor(seconds=0.01)
    shown = MachineStrip(source)
    source.start()
    end = time.monotonic() + 10
    while source.reading is None and time.monotonic() < end:
        time.sleep(0.01)
    shown.draw()
    source.stop()
    assert re.search(r"RAM</span><span>\d+\.\d of \d+\.\d GiB", shown.value)
    shown.close()


def test_the_dashboard_shows_it_when_a_page_asks_and_not_before(stage, wire):
    dashboard = Dashboard(stage.service, stage)
    assert dashboard._strip.value == ""
    assert dashboard._strip in dashboard.children
    source = SystemMonitor()
    source.set_trait("reading", reading())
    dashboard._strip._source = source
    dashboard._panel._handle_custom_msg({"op": "beat"}, [])
    assert "14.0 of 15.0 GiB" in dashboard._strip.value
    dashboard.close()
    core = Dashboard(stage.service, stage, mode="core")
    assert core._strip in core.children
    core.close()
