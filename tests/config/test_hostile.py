"""Whatever a file holds, only a ConfigError or warnings come out, soon and in little memory."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modules.config import ConfigError, TrainConfig, settings, validate
from modules.config.files import load_concepts, load_samples
from modules.config.section import plain

FILES = Path(__file__).parent / "files"
NAMES = [*TrainConfig.model_fields, "__version", "weight_dtype", "train_unet", "min_snr_gamma"]
QUICK = examples(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**310),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["NONE", "inf", "-inf", "nan", "FLOAT_16", "\ud800", "../../etc", "<b>", "\0"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
configs = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), values, max_size=8)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loads_or_refuses(source):
    """Load; what is refused is refused in the one way that is allowed."""
    try:
        config, warnings = TrainConfig.load(source)
    except ConfigError as refused:
        said = refused.problems
    else:
        said = warnings
        json.dumps(config.update(epochs=3).to_dict(), allow_nan=False)
    assert all(problem.message for problem in said)


@QUICK
@given(configs)
def test_any_dict_loads_or_is_refused(data):
    loads_or_refuses(data)


@QUICK
@given(st.integers(0, 11), st.data())
def test_any_value_in_an_old_file_loads_or_is_refused(version, data):
    old = json.loads((FILES / f"v{version}.json").read_text())
    name = data.draw(st.sampled_from(sorted(old)))
    loads_or_refuses({**old, name: data.draw(values)})


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tmp_path, raw):
    (tmp_path / "x.json").write_bytes(raw)
    loads_or_refuses(tmp_path / "x.json")


@QUICK
@given(st.lists(values, max_size=3))
def test_any_list_of_concepts_or_samples_loads_or_is_refused(tmp_path, data):
    (tmp_path / "x.json").write_text(json.dumps(data))
    for load in (load_concepts, lambda path: load_samples(path, {})):
        try:
            _, said = load(tmp_path / "x.json")
        except ConfigError as refused:
            said = refused.problems
        assert all(problem.message for problem in said)


@QUICK
@given(st.sampled_from([*TrainConfig.names(), "concepts.0.path", "a.b", ""]), values)
def test_any_update_works_or_is_refused(name, value):
    config = TrainConfig().update(concepts=[{"path": "a"}])
    try:
        said = validate(config.update(**{name: value}))
    except ConfigError as refused:
        said = list(refused.problems)
    assert all(problem.message for problem in said)


@QUICK
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_loads_or_is_refused(tmp_path, place, damage):
    raw = (FILES / "v11.json").read_bytes()
    (tmp_path / "x.json").write_bytes(raw[:place] + damage + raw[place + len(damage) :])
    loads_or_refuses(tmp_path / "x.json")


@QUICK
@given(st.integers(0, 1000))
def test_a_truncated_file_is_refused(tmp_path, length):
    raw = (FILES / "v0.json").read_bytes()
    length = min(length, len(raw) - 3)
    (tmp_path / "x.json").write_bytes(raw[:length])
    with pytest.raises(ConfigError, match="is no JSON"):
        TrainConfig.load(tmp_path / "x.json")


def a_value_of(setting):
    """Valid values of a setting, its bounds included."""
    if setting.choices:
        made = st.sampled_from(setting.choices)
    elif setting.annotation is bool:
        made = st.booleans()
    elif setting.annotation is str:
        made = st.text(max_size=12)
    else:
        low = setting.minimum if setting.minimum is not None else -1000
        high = setting.maximum if setting.maximum is not None else low + 1000
        if setting.annotation is int:
            made = st.integers(int(low), int(high) - setting.exclusive_maximum)
        else:
            made = st.floats(
                low,
                high,
                exclude_min=setting.exclusive_minimum,
                exclude_max=setting.exclusive_maximum,
            )
    return st.none() | made if setting.nullable else made


@QUICK
@given(st.data())
def test_a_random_valid_config_comes_back_from_its_file_as_it_was(tmp_path, data):
    chosen = data.draw(st.lists(st.sampled_from(settings(TrainConfig)), max_size=12, unique=True))
    changes = {setting.path: data.draw(a_value_of(setting)) for setting in chosen}
    changes.pop("concept_file_name", None)
    changes.pop("sample_definition_file_name", None)
    config = TrainConfig().update(**changes)
    config.save(tmp_path / "x.json")
    again, warnings = TrainConfig.load(tmp_path / "x.json")
    assert again.to_dict() == config.to_dict()
    assert warnings == []
    json.dumps(plain(again), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"epochs": NaN}', "is no JSON: NaN is no number that JSON knows"),
        ('{"epochs": -Infinity}', "-Infinity is no number that JSON knows"),
        ('{"epochs": 1e999}', "epochs is inf, but must be a"),
        ('{"epochs": ' + "9" * 5000 + "}", "is no JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested more than 64 deep"),
        ("", "is no JSON"),
        ("null", "The config is None, but must be an object"),
        ('"config"', "but must be an object"),
        ('{"epochs": "\\ud800"}', "epochs"),
        ('{"workspace_dir": "\\ud800"}', "characters that no file can hold"),
    ],
)
def test_odd_json_is_refused_in_plain_words(tmp_path, text, expected):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError) as refused:
        TrainConfig.load(tmp_path / "x.json")
    assert expected in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_number_of_any_size_is_taken_where_there_is_no_bound():
    assert TrainConfig.load({"epochs": 10**400})[0].epochs == 10**400


def test_a_file_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"workspace_dir": "\xff\xfe"}')
    with pytest.raises(ConfigError, match=r"is no UTF-8 text \(byte 19\)\. Save it as UTF-8"):
        TrainConfig.load(tmp_path / "x.json")


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"epochs": 3}')
    assert TrainConfig.load(tmp_path / "x.json")[0].epochs == 3


def test_a_name_that_stands_twice_is_reported_and_the_last_counts(tmp_path):
    (tmp_path / "x.json").write_text('{"epochs": 3, "epochs": 4}')
    config, (warning,) = TrainConfig.load(tmp_path / "x.json")
    assert config.epochs == 4
    assert "epochs stands twice in one object of x.json. The last one counts" in str(warning)


def test_a_file_of_100_mb_is_refused_without_being_read_whole(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.seek(100 * 2**20)
        file.write(b"}")
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="larger than 64 MiB, so it is no config"):
        TrainConfig.load(tmp_path / "x.json")
    assert time.perf_counter() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    tracemalloc.stop()


def test_thousands_of_unknown_keys_take_seconds_at_most():
    began = time.perf_counter()
    _, warnings = TrainConfig.load({f"unknown_setting_{number}": 1 for number in range(5000)})
    assert time.perf_counter() - began < 5
    assert len(warnings) <= 101


def test_a_dict_that_holds_itself_is_refused():
    data = {}
    data["unet"] = data
    with pytest.raises(ConfigError, match="nested more than 64 deep"):
        TrainConfig.load(data)
