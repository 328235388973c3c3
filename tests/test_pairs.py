"""Images with texts, from data sets and from memory."""

import pytest
import torch
from datasets import Dataset

from hf_zip.calibration import from_memory, load_inputs
from hf_zip.collect import collation
from hf_zip.errors import HfZipError
from hf_zip.images import ImageReader
from hf_zip.pairs import PairReader
from hf_zip.recipe import CalibrationSpec
from hf_zip.texts import TextReader
from tests.data import CAPTIONS, random_images, write_captioned
from tests.models import processor
from tests.texts import sentences, tokenizer


def reader(**options):
    return PairReader(ImageReader(processor()), TextReader(tokenizer(**options), 16))


def batch(inputs, positions):
    return collation(inputs)([inputs[i] for i in positions])


def pairs(count=5):
    return list(zip(random_images(count), sentences(count), strict=True))


def test_pairs_in_memory_stay_together_and_the_longest_texts_come_first():
    inputs = from_memory(pairs(), reader())
    found = batch(inputs, range(5))
    assert set(found) == {"pixel_values", "input_ids", "attention_mask", "token_type_ids"}
    lengths = found["attention_mask"].sum(dim=1)
    assert torch.equal(lengths, lengths.sort(descending=True).values)
    alone = {tuple(row["input_ids"]): row["pixel_values"] for row in inputs}
    for image, text in pairs():
        row = from_memory([(image, text)], reader())[0]
        assert torch.equal(alone[tuple(row["input_ids"])], row["pixel_values"])


def test_prepared_pairs_are_taken_as_they_are():
    rows = [
        {"pixel_values": torch.rand(3, 8, 8), "input_ids": [2, 5, 3], "attention_mask": [1] * 3}
    ]
    for data in (
        rows,
        Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist()} for row in rows]),
    ):
        found = batch(from_memory(data, reader()), [0])
        torch.testing.assert_close(found["pixel_values"][0], rows[0]["pixel_values"])
        assert found["input_ids"].tolist() == [[2, 5, 3]]


def test_columns_are_found_or_named(tmp_path):
    data = write_captioned(tmp_path / "data.parquet")
    for column in (None, ("image", "caption")):
        spec = CalibrationSpec(data=(data,), samples=4, column=column)
        inputs = load_inputs(spec, reader(), seed=0)
        assert inputs.description["column"] == ["image", "caption"]
        assert inputs.description["max_length"] == 16
        assert batch(inputs, range(4))["pixel_values"].shape == (4, 3, 8, 8)


def test_one_named_column_is_refused(tmp_path):
    spec = CalibrationSpec(data=(f"{write_captioned(tmp_path / 'data.parquet')}:image",), samples=2)
    with pytest.raises(HfZipError, match=r"1 columns are named .*name both as 'column: \[IMAGE, T"):
        load_inputs(spec, reader(), seed=0)


def test_pairs_of_texts_beside_an_image_are_refused():
    columns = {"image": random_images(2), "premise": CAPTIONS[:2], "hypothesis": CAPTIONS[2:4]}
    with pytest.raises(HfZipError, match=r"hold pairs of texts \(premise, hypothesis\), but .*one"):
        from_memory(Dataset.from_dict(columns), reader())


def test_an_image_without_a_text_is_refused():
    with pytest.raises(
        HfZipError, match=r"input 0 has pixel_values, but .*pixel_values and input_"
    ):
        from_memory([{"pixel_values": torch.rand(3, 8, 8)}], reader())


@pytest.mark.parametrize(
    "data", [torch.rand(2, 3, 8, 8), ["a text"], [(1, 2)], [("a", "b")], random_images(2)]
)
def test_what_is_no_pair_is_refused(data):
    with pytest.raises(HfZipError, match=r"should be .*pairs of a PIL image and a text"):
        from_memory(data, reader())


def test_texts_of_models_without_a_mask_are_padded_to_one_length():
    inputs = from_memory(pairs(), reader(model_input_names=["input_ids"]))
    found = batch(inputs, [3, 4])
    assert set(found) == {"pixel_values", "input_ids"}
    assert found["input_ids"].shape == (2, 16)
