"""Labelled data of every kind: from columns, prepared in memory, and as batches."""

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_zip.calibration import from_memory, labelled_from_memory, load_inputs, load_labelled
from hf_zip.errors import HfZipError
from hf_zip.images import ImageReader
from hf_zip.recipe import CalibrationSpec, EvaluationSpec
from hf_zip.texts import TextReader
from tests.data import random_images
from tests.models import processor
from tests.texts import sentences, tokenizer

NAMES = ["O", "B", "I"]
WORDS = [["play", "tables"], ["who", "is", "the", "songs"], ["a"]]  # "tables" is two tokens
TAGS = [["B", "O"], ["O", "I", "O", "B"], ["I"]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def reader(**options):
    return TextReader(tokenizer(), **options)


def read(data, kind="token-classification", labels=NAMES, own=None):
    return labelled_from_memory(data, own or reader(), labels, "t", kind)


def tagged(tags=TAGS, feature=None, column="ner_tags", words=WORDS):
    """Words and their tags, by the side of a column of texts that is none of words."""
    feature = feature or Value("string")
    features = {"id": Value("string"), "tokens": List(Value("string")), column: List(feature)}
    values = {"id": list("abc"), "tokens": words, column: tags}
    return Dataset.from_dict(values, features=Features(features))


def positions(names):
    return [[names.index(tag) for tag in row] for row in TAGS]


# Of the longest first: [CLS] who is the song ##s [SEP], [CLS] play table ##s [SEP], [CLS] a [SEP]
EXPECTED = [[-100, 0, 2, 0, 1, -100, -100], [-100, 1, 0, -100, -100], [-100, 2, -100]]


@pytest.mark.parametrize(
    ("data", "matched_by"),
    [
        (tagged(), "name"),
        (tagged(positions(["B", "I", "O"]), ClassLabel(names=["B", "I", "O"])), "name"),
        (tagged(positions(NAMES), Value("int64"), "tags"), "position"),
        (tagged(positions(NAMES), Value("int64"), "labels"), "position"),
    ],
)
def test_the_first_token_of_a_word_has_its_label(data, matched_by):
    inputs = read(data)
    assert [row["labels"] for row in inputs] == EXPECTED
    assert [len(row["input_ids"]) for row in inputs] == [7, 5, 3]
    assert inputs.description["column"] == "tokens"
    assert inputs.description["labels_matched_by"] == matched_by


def test_labels_are_padded_with_what_no_loss_counts():
    inputs = read(tagged())
    batch = inputs.collate([inputs[i] for i in range(3)])
    assert batch["labels"].tolist() == [row + [-100] * (7 - len(row)) for row in EXPECTED]
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 5, 3]
    words = tokenizer()
    words.pad_token = None  # texts of one length need no padding
    alone = read(tagged().select([0]), own=TextReader(words))
    assert alone.collate([alone[0]])["labels"].tolist() == [EXPECTED[1]]


def test_words_that_are_cut_off_and_tags_that_are_none_count_nowhere():
    inputs = read(tagged(), own=reader(max_length=4))
    assert [row["labels"] for row in inputs] == [
        [-100, 1, 0, -100],
        [-100, 0, 2, -100],
        EXPECTED[2],
    ]
    assert inputs.description["truncated"] == 2
    unknown = [[0, -100], [0, 2, 0, 1], [2]]
    inputs = read(tagged(unknown, Value("int64")))
    assert inputs[1]["labels"] == [-100, 0, -100, -100, -100]


def test_tags_by_name_of_their_file(tmp_path):
    data = tagged(positions(["B", "I", "O"]), ClassLabel(names=["B", "I", "O"]), "pos")
    data = data.rename_column("tokens", "forms")
    data.to_parquet(tmp_path / "a.parquet")
    spec = EvaluationSpec("t", str(tmp_path / "a.parquet"), column="forms", label_column="pos")
    inputs = load_labelled(spec, reader(), NAMES, 0, kind="token-classification")
    assert [row["labels"] for row in inputs] == EXPECTED
    assert inputs.description["label_column"] == "pos"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tagged([["B"], ["O"] * 4, ["I"]]), "row 0 of .* has 2 words in 'tokens' and 1 labels in"),
        (
            tagged([["B", "X"], ["O"] * 4, ["I"]]),
            "1 labels of data .* are unknown to task 't': 'X'",
        ),
        (
            tagged([["B", None], ["O"] * 4, ["I"]]),
            "1 of 3 rows of .* no label in column 'ner_tags'",
        ),
        (
            tagged(column="other"),
            "no column of lists of labels ner_tags, labels, tags, which token",
        ),
        (
            tagged().rename_column("tokens", "a").add_column("b", WORDS),
            "2 columns hold lists of words in data .*; name it as in memory:COLUMN",
        ),
        (tagged().remove_columns("tokens"), "no columns hold lists of words in data"),
        (tagged(words=[["play", None], *WORDS[1:]]), "holds .* for a list of words; leave the row"),
    ],
)
def test_tags_that_cannot_be_given_to_words(data, message):
    with pytest.raises(HfZipError, match=message):
        read(data)


def test_tags_need_a_tokenizer_that_tells_words(monkeypatch):
    own = tokenizer()
    monkeypatch.setattr(type(own), "is_fast", False)
    with pytest.raises(HfZipError, match="BertTokenizer does not tell which word a token belongs"):
        read(tagged(), own=TextReader(own))
    with pytest.raises(HfZipError, match="asks of tokens, but the models take pixel_values"):
        read(tagged(), own=ImageReader(processor()))


def test_models_are_calibrated_on_lists_of_words(tmp_path):
    inputs = from_memory(tagged(), reader())
    ids = [tuple(tokenizer()(" ".join(words))["input_ids"]) for words in WORDS]
    assert sorted(tuple(row["input_ids"]) for row in inputs) == sorted(ids)
    assert "labels" not in inputs[0]
    tagged().to_parquet(tmp_path / "a.parquet")
    spec = CalibrationSpec((str(tmp_path / "a.parquet"),), column="ner_tags", samples=2)
    named = load_inputs(spec, reader(), 0)
    assert named.description["column"] == "ner_tags"


# Numbers.


def scored(values, column="label"):
    return Dataset.from_dict({"text": ["play", "who is the", "a table"], column: values})


@pytest.mark.parametrize(
    ("data", "labels", "expected"),
    [
        (scored([0.5, 1, 2.25]), ["x"], [[1.0], [2.25], [0.5]]),
        (scored([3, 1, 2], "score"), ["x"], [[1.0], [2.0], [3.0]]),
        (scored([[0, 1.5], [2, 3], [4, 5]], "labels"), ["x", "y"], [[2, 3], [4, 5], [0, 1.5]]),
    ],
)
def test_numbers_to_predict(data, labels, expected):
    inputs = read(data, "regression", labels)
    batch = inputs.collate([inputs[i] for i in range(3)])
    assert batch["labels"].tolist() == expected
    assert batch["labels"].dtype == torch.float64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            scored([0.5, None, 1.0]),
            "1 of 3 rows .* no label in column 'label' .None or not a number",
        ),
        (scored([0.5, float("nan"), 1.0]), "no label in column 'label' .* the first is row 1"),
        (
            scored([[1.0, 2.0]] * 3),
            "row 0 of data 'in memory' has 2 numbers in column 'label', but",
        ),
        (scored(["a", "b", "c"]), "have no column of numbers 'label, labels, score', which a regr"),
    ],
)
def test_what_is_no_number_to_predict(data, message):
    with pytest.raises(HfZipError, match=message):
        read(data, "regression", ["x"])


def test_images_have_numbers_too():
    data = Dataset.from_dict({"image": random_images(3), "label": [0.5, 1.5, 2.5]})
    inputs = read(data, "regression", ["x"], ImageReader(processor()))
    batch = inputs.collate([inputs[i] for i in range(3)])
    assert batch["labels"].tolist() == [[0.5], [1.5], [2.5]]


# Prepared in memory.


def test_what_is_right_for_prepared_inputs():
    ids = [{"input_ids": [2, 5, 3]}, {"input_ids": [2, 5, 6, 3]}]

    def batch(kind, names=NAMES, **targets):
        rows = [
            {**row, **{name: values[i] for name, values in targets.items()}}
            for i, row in enumerate(ids)
        ]
        for data in (rows, Dataset.from_list(rows)):
            inputs = read(data, kind, names)
            found = inputs.collate([inputs[0], inputs[1]])
        return {name: found[name].tolist() for name in targets}

    tags = {"labels": [[-100, 2, -100], [-100, 1, 0, -100]]}
    padded = {"labels": [[-100, 1, 0, -100], [-100, 2, -100, -100]]}
    assert batch("token-classification", **tags) == padded
    assert batch("masked-lm", [], **tags) == padded
    assert batch("regression", ["x"], labels=[0.1, 1]) == {"labels": [1.0, 0.1]}
    several = {"labels": [[0, 1, 1], [1, 0, 0]]}
    assert batch("multi-label-classification", **several) == {"labels": several["labels"][::-1]}
    span = {"start_positions": [1, 1], "end_positions": [1, 2]}
    assert batch("question-answering", [], **span) == {
        "start_positions": [1, 1],
        "end_positions": [2, 1],
    }


@pytest.mark.parametrize(
    ("kind", "item", "message"),
    [
        (
            "token-classification",
            {"labels": [0, 1]},
            "'labels' of input 0 .* have shape .2,., but it",
        ),
        (
            "masked-lm",
            {"labels": 3},
            "have shape .., but it has 3 tokens; give the id of every mask",
        ),
        (
            "token-classification",
            {},
            "no 'labels' .* give every input a label for every token, -100",
        ),
        (
            "question-answering",
            {"start_positions": 1},
            "no 'end_positions' .* the first and the last",
        ),
        ("regression", {}, "no 'labels' .* give every input its number"),
    ],
)
def test_prepared_inputs_that_lack_what_is_right(kind, item, message):
    with pytest.raises(HfZipError, match=message):
        read([{"input_ids": [2, 5, 3], **item}], kind)


@pytest.mark.parametrize("kind", ["question-answering", "multi-label-classification"])
def test_kinds_that_cannot_be_read_from_columns(kind):
    with pytest.raises(
        HfZipError, match=f"what is right for {kind} cannot be read from columns; pre"
    ):
        read(scored([1, 2, 3]), kind)


# Masked tokens.


def test_some_tokens_of_a_text_are_masked_and_to_be_found():
    texts = [*sentences(40, seed=2), " ".join(["play"] * 12)]
    inputs = read(Dataset.from_dict({"text": texts}), "masked-lm", [])
    special = {*tokenizer().all_special_ids}
    found = []
    for row in inputs:
        pairs = list(zip(row["input_ids"], row["labels"], strict=True))
        whole = [token if label == -100 else label for token, label in pairs]
        found.append(tokenizer().decode(whole, skip_special_tokens=True))
        hidden = [label for _, label in pairs if label != -100]
        assert not special & {*hidden}
        assert [t for t, label in pairs if label != -100] == [tokenizer().mask_token_id] * len(
            hidden
        )
        own = sum(token not in special for token in whole)
        assert len(hidden) == max(1, round(0.15 * own))
    assert sorted(found) == sorted(texts)
    assert (
        len({tuple(x != -100 for x in row["labels"]) for row in inputs if len(row["labels"]) == 9})
        > 1
    )
    again = read(Dataset.from_dict({"text": texts}), "masked-lm", [])
    assert [again[i] for i in range(41)] == [inputs[i] for i in range(41)]
    assert inputs.description["masked"] == 0.15


def test_texts_without_a_token_or_a_mask_cannot_be_masked():
    with pytest.raises(
        HfZipError, match="row 1 of data 'in memory' has no token that could be mask"
    ):
        read(Dataset.from_dict({"text": ["play", ""]}), "masked-lm", [])
    words = tokenizer()
    words.mask_token = None
    for own in (TextReader(words), TextReader(None), ImageReader(processor())):
        with pytest.raises(HfZipError, match="have no tokenizer with a mask token; save the one"):
            read(Dataset.from_dict({"text": ["play"]}), "masked-lm", [], own)
