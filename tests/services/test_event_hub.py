import threading
import time

import pytest

from ot_notebook.services.event_hub import EventHub


@pytest.fixture
def collected():
    return []


@pytest.fixture
def hub(collected):
    hub = EventHub(collected.append, period=0.01)
    yield hub
    hub.close()


def test_items_arrive_by_themselves_in_order_and_in_batches(hub, collected):
    for number in range(1000):
        hub.post(number)
    until = time.monotonic() + 5
    while sum(map(len, collected)) < 1000 and time.monotonic() < until:
        time.sleep(0.01)
    assert [item for batch in collected for item in batch] == list(range(1000))
    assert len(collected) < 20


def test_flush_from_many_threads_while_others_post_loses_and_repeats_nothing(hub, collected):
    def post(thread):
        for number in range(2000):
            hub.post((thread, number))

    def flush():
        while not done.is_set():
            hub.flush()

    done = threading.Event()
    flushers = [threading.Thread(target=flush) for _ in range(3)]
    posters = [threading.Thread(target=post, args=(name,)) for name in range(4)]
    for thread in flushers + posters:
        thread.start()
    for thread in posters:
        thread.join()
    done.set()
    for thread in flushers:
        thread.join()
    hub.flush()
    items = [item for batch in collected for item in batch]
    assert len(items) == 8000
    for name in range(4):  # each thread's own items keep their order
        assert [number for thread, number in items if thread == name] == list(range(2000))


def test_an_item_posted_by_a_reader_comes_after_the_batch_it_answers():
    seen = []

    def deliver(batch):
        seen.extend(batch)
        if batch == ["question"]:
            hub.post("answer")
            hub.flush()  # must not deliver inside the delivery
            seen.append("end of the first batch")

    hub = EventHub(deliver, period=60)
    hub._dispatcher = threading.current_thread()  # no second thread: the order is the point
    hub.post("question")
    hub.flush()
    hub.flush()
    assert seen == ["question", "end of the first batch", "answer"]


def test_close_delivers_the_rest_and_a_later_item_still_arrives(collected):
    hub = EventHub(collected.append, period=0.01)
    hub.post("a")
    hub.close()
    assert collected == [["a"]]
    hub.post("b")
    hub.close()
    assert collected == [["a"], ["b"]]


def test_post_does_not_wait_for_a_slow_reader():
    entered, release = threading.Event(), threading.Event()

    def slow(batch):
        entered.set()
        release.wait(10)

    hub = EventHub(slow, period=0.01)
    hub.post("a")
    assert entered.wait(5)
    began = time.perf_counter()
    for number in range(1000):
        hub.post(number)
    assert time.perf_counter() - began < 0.5
    release.set()
    hub.close()
