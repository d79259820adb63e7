"""What the views share: two ways to draw, push and pull, replay."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import anywidget
import ipywidgets as W
from IPython import get_ipython

from modules.training.events import Event
from ot_notebook.widgets.markup import STATIC, css
from ot_notebook.widgets.story import StoryBox, close_tree

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

Mode = Literal["auto", "rich", "core"]

HELLO_SECONDS = 4.0
"""How long a page has to load our module before the view falls back to core widgets."""

PULL_SECONDS = 2.0
"""A page that has not asked for so long is sent what is new without asking."""

PLAY_MS = 500
"""Period of the heartbeat where only core widgets work."""


def esm(*names: str) -> str:
    """One module of files, what all share in front; a module cannot import our files."""
    shared = ("dom.js", "controls.js", "live.js")
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in (*shared, *names))


class Front(anywidget.AnyWidget):
    """A module that says hello and beats; base of the panel and of the gallery."""

    _css = css()


class AdaptiveView(StoryBox):
    """A view that our module draws where the page loads it, and core widgets draw elsewhere.

    A subclass gives `_make_rich` and `_make_core`, which return children, and `_draw`, which brings
    them up to date from whatever thread. Its constructor ends with `_use(self.mode)`.

    Args:
        mode: "rich" needs the front end to load anywidget modules, "core" needs ipywidgets alone,
            "auto" starts rich and falls back when no module says hello.

    Raises:
        ValueError: for another mode.
    """

    # on the class: a constructor that refuses its arguments is followed by `close` all the same
    _play: W.Play | None = None
    _made: Mapping[str, Sequence[W.Widget]] = MappingProxyType({})

    def __init__(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f'mode is {mode!r}, but must be one of "auto", "rich", "core".')
        fixed_build = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # its front end loads no anywidget
        self.mode: Literal["rich", "core"] = "rich"
        if mode == "core" or (mode == "auto" and fixed_build):
            self.mode = "core"
        self._auto = mode == "auto"
        self._drawing = threading.RLock()
        self._greeted = False
        self._pages: set[str] = set()
        self._asleep = False
        super().__init__()

    @abstractmethod
    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        """The module that beats, and the children."""

    @abstractmethod
    def _make_core(self) -> Sequence[W.Widget]:
        """Children that need nothing but ipywidgets."""

    @abstractmethod
    def _draw(self, events: Sequence[Event] | None) -> None:
        """Show what is; `events` says what is new, None that everything may be."""

    @abstractmethod
    def _pull(self) -> bool | None:
        """The page asks for what is new; the answer passes where unasked messages are dropped.

        Returns:
            True if the state of the module that beats has changed: that answers the beat, too.
        """

    def _use(self, mode: Literal["rich", "core"]) -> None:
        """Show the children of `mode`, made on first use, and draw everything into them."""
        with self._drawing:
            if mode not in self._made:
                if mode == "rich":
                    front, children = self._make_rich()
                    front.on_msg(self._on_message)
                else:
                    self._play = W.Play(interval=PLAY_MS, min=0, max=2**31 - 1)
                    self._play.layout.display = "none"
                    self._play.observe(lambda _change: self._beat(), "value")
                    children = [*self._make_core(), self._play]
                self._made = {**self._made, mode: children}
            self.mode = mode
            self._draw(None)
            self.children = tuple(self._made[mode])

    # the line to the page ----------------------------------------------------------------------

    def _on_message(self, front: Front, content: dict[str, Any], _buffers: Any) -> None:
        """A message of our module, on whatever thread the kernel serves it."""
        match content:
            case {"op": "hello"}:
                self._greeted = True
                if self._auto and self.mode == "core":
                    self._use("rich")  # it was only late: a cell had blocked the kernel
            case {"op": "show", "client": client}:
                self._pages.add(client)
                self._wake()
            case {"op": "hide", "client": client}:
                self._pages.discard(client)
                self._asleep = not self._pages  # nobody looks: no work until somebody does
            case {"op": "beat"}:
                if not self._beat():
                    front.send({"op": "ack"})
            case _:
                self._on_request(content)

    def _on_request(self, content: dict[str, Any]) -> None:
        """A message that is not about the line itself."""

    def _beat(self) -> bool | None:
        self._wake()
        return self._pull()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            with self._drawing:
                self._draw(None)

    def shown(self) -> None:
        """Wake, and find out which mode the page can show."""
        self._wake()
        if self.mode == "core":
            _later(1.0, self._start_play)
        elif self._auto:
            _later(HELLO_SECONDS, self._fall_back)

    def _fall_back(self, again: bool = True) -> None:
        """Use core widgets if no module has said hello; asked twice, as a hello may be in line."""
        if self._greeted or self.mode == "core":
            return
        if again:
            _later(1.0, lambda: self._fall_back(again=False))
        else:
            self._use("core")
            _later(1.0, self._start_play)

    def _start_play(self) -> None:
        """Start the core heartbeat; a Play only starts once it is on the page."""
        if self._play is not None and self.mode == "core":
            _set_playing(self._play, True)

    def close(self) -> None:
        """Free everything on the page."""
        if self._play is not None:
            _set_playing(self._play, False)  # a closed Play that plays would tick for ever
        for children in self._made.values():
            for child in children:
                close_tree(child)
        self._made = MappingProxyType({})
        super().close()


class LiveView(AdaptiveView):
    """A view of one `TrainerService`. It holds nothing: each drawing reads the service.

    Args:
        service: what to show; this kernel's trainer by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """

    def __init__(self, service: TrainerService | None, mode: Mode) -> None:
        super().__init__(mode)
        self._news: list[Event] = []
        self._pulled_at = -math.inf
        self._pushed = False
        self.service = self.follow(service)
        self._use(self.mode)

    def _pull(self) -> bool | None:
        pushed, self._pushed = self._pushed, False
        self._pulled_at = time.monotonic()
        self.service.flush()
        self._draw_news()
        if pushed:  # it may have been dropped on its way, and a trait that stays is not sent again
            repeat(self)
        return None

    def _on_events(self, events: Sequence[Event]) -> None:
        """Leave the news to a page that pulls; push them to one that does not.

        Recent kernels serve a comm on the thread that last sent on it. A push from here would bind
        the page's next message to the main thread, and Stop would wait while a cell blocks that.
        """
        with self._drawing:
            if self._made and not self._asleep:
                self._news += events
                if time.monotonic() - self._pulled_at > PULL_SECONDS:
                    self._draw_news()
                    self._pushed = True
        super()._on_events(events)

    def _draw_news(self) -> None:
        with self._drawing:
            news, self._news = self._news, []
            if news:
                self._draw(news)


def repeat(widget: W.Widget) -> None:
    """Send the state of a widget, and of all that it refers to, once more."""
    for value in widget.trait_values(sync=True).values():
        inner = list(value.values()) if isinstance(value, dict) else value
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            if isinstance(one, W.Widget):
                repeat(one)
    widget.send_state()


def _set_playing(play: W.Play, playing: bool) -> None:
    setattr(play, "playing" if play.has_trait("playing") else "_playing", playing)


def _later(seconds: float, action: Callable[[], None]) -> None:
    """Run `action` when the kernel's main thread is next free after `seconds`.

    Without a kernel (a test, a script) there is no page to wait for, and nothing happens.
    """
    if getattr(get_ipython(), "kernel", None) is None:
        return
    try:
        asyncio.get_running_loop().call_later(seconds, action)
    except RuntimeError:  # a thread without a loop, for instance a comm subshell
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
