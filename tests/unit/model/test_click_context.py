"""Context features: columns by hand, what is absent or odd reads as average, settings survive the artifact."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.clicks.context import ContextFeature, context_columns, read_spec, spec_tensor, title_context
from model.clicks.fields import read_lines
from model.clicks.rows import click_log
from model.errors import ArtifactError, DataError
from schemas.events import ClickEvent

PRICE = ContextFeature("price").fitted([{"price": float(price)} for price in range(100)])
BRAND = ContextFeature("brand", kind="categorical", buckets=8)


def test_a_number_is_standardised_and_its_ends_are_marked():
    columns = context_columns((PRICE,), [{"price": 49.5}, {"price": 0.0}, {"price": 99}, {}], 4)
    np.testing.assert_allclose(columns[:, 0], [0, -49.5 / PRICE.scale, 49.5 / PRICE.scale, 0], rtol=1e-6)
    assert columns[:, 1].tolist() == [0, 1, 0, 0]
    assert columns[:, 2].tolist() == [0, 0, 1, 0]


def test_a_category_is_one_column_and_the_same_one_always():
    columns = context_columns((BRAND,), [{"brand": "acme"}, {"brand": "acme"}, {"brand": "zen"}, {}], 4)
    assert columns.sum(axis=1).tolist() == [1, 1, 1, 0]
    assert columns[0].tolist() == columns[1].tolist()
    # Pinned: a hash that changed between releases would scramble what was fitted.
    assert int(columns[0].argmax()) == 4


@pytest.mark.parametrize("value", ["13", "13.0", "1.3e1", "-0", "9007199254740993", "0.1", '"13"', '"13.0"'])
def test_a_category_has_its_column_in_training_and_in_serving(value, tmp_path):
    hour = ContextFeature("hour", kind="categorical", buckets=256)
    line = f'{{"event_id": "e", "event_time_ms": 1, "context": {{"hour": {value}}}}}'
    path = tmp_path / "log.jsonl"
    path.write_text(line.replace("{", '{"user_id": "u", "item_id": "i", "ts": 1, "clicked": 0, ', 1), encoding="utf-8")
    trained = context_columns((hour,), click_log(read_lines([path])).contexts, 1)
    served = context_columns((hour,), [msgspec.json.decode(line, type=ClickEvent).context], 1)
    assert trained.argmax() == served.argmax()


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["price", "brand"]), st.floats() | st.integers() | st.just(10**400) | st.text(max_size=5)
        ),
        max_size=8,
    )
)
def test_any_context_gives_numbers(contexts):
    columns = context_columns((PRICE, BRAND), contexts, len(contexts))
    assert columns.shape == (len(contexts), 11)
    assert np.isfinite(columns).all()


def test_no_contexts_read_as_average():
    assert not context_columns((PRICE, BRAND), None, 3).any()


def test_settings_survive_the_artifact():
    spec = (PRICE, BRAND, ContextFeature("position", neutral=1.0))
    assert read_spec(spec_tensor(spec)) == spec
    assert read_spec(spec_tensor(())) == ()
    with pytest.raises(ArtifactError, match="fit it again"):
        read_spec(np.array([1.0, 2.0], np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ordinal"}, "'x': kind 'ordinal'; known: numeric, categorical"),
        ({"buckets": 0}, "'x': 0 buckets"),
        ({"neutral": "first"}, "neutral value 'first' is not of kind numeric"),
        ({"kind": "categorical", "neutral": 1.0}, "neutral value 1.0 is not of kind categorical"),
    ],
)
def test_useless_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        ContextFeature("x", **settings)


def test_a_number_that_no_row_has_is_refused():
    with pytest.raises(DataError, match="'price': no training row"):
        ContextFeature("price").fitted([{"price": "cheap"}, {}])


@pytest.mark.parametrize(
    ("title", "year"), [("Casablanca (1942)", 1942.0), ("2001 (1968)", 1968.0), ("Phone 2019", None), ("", None)]
)
def test_year_of_a_title(title, year):
    assert title_context(title).get("year") == year
