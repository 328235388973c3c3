import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from torch.utils.data import DataLoader, Subset
from transformers import RobertaConfig, RobertaModel

from hf_zip.asked import read_request
from hf_zip.calibration import from_memory, labelled_from_memory, load_inputs, load_labelled
from hf_zip.collect import collation
from hf_zip.data import names_data
from hf_zip.errors import HfZipError
from hf_zip.images import ImageReader
from hf_zip.processors import longest_text
from hf_zip.readers import reader_of
from hf_zip.recipe import CalibrationSpec, EvaluationSpec, Recipe
from hf_zip.sources import from_model
from hf_zip.texts import TextReader, tokenize
from tests.models import processor, vit
from tests.texts import bert, sentences, tokenizer

LABELS = ("question", "order")
TEXTS = ["who is the best", "book a table", "play"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def reader(**options):
    return TextReader(tokenizer(), **options)


def unlabelled(*data, seed=0, limit=None, words=None, **options):
    spec = CalibrationSpec(data=tuple(map(str, data)), **options)
    return load_inputs(spec, TextReader(words or tokenizer(), limit, spec.max_length), seed)


def labelled(data, labels=LABELS, **options):
    spec = EvaluationSpec(task="t", data=str(data), **options)
    return load_labelled(spec, reader(), labels, 0)


def decoded(inputs):
    """The texts that come out, special tokens left out."""
    return [tokenizer().decode(row["input_ids"], skip_special_tokens=True) for row in inputs]


def table(**columns):
    return Dataset.from_dict(columns or {"text": TEXTS})


# Where texts come from.


def test_a_file_of_every_kind(tmp_path):
    path = tmp_path / "a"
    table().to_parquet(path.with_suffix(".parquet"))
    table().to_csv(path.with_suffix(".csv"))
    table().to_json(path.with_suffix(".jsonl"))
    path.with_suffix(".txt").write_text("who is the best\n\n  \nbook a table\nplay")
    for suffix in ("parquet", "csv", "jsonl", "txt"):
        inputs = unlabelled(path.with_suffix(f".{suffix}"))
        assert decoded(inputs) == TEXTS
        assert inputs.description["column"] == "text"
        assert inputs.description["rows_available"] == 3
    DatasetDict(train=table()).save_to_disk(tmp_path / "saved")
    assert decoded(unlabelled(tmp_path / "saved")) == TEXTS


def test_the_description_says_where_texts_were_cut_off(tmp_path):
    table().to_parquet(tmp_path / "a.parquet")
    description = unlabelled(tmp_path / "a.parquet", max_length=5).description
    assert (description["max_length"], description["truncated"]) == (5, 1)
    both = unlabelled(tmp_path / "a.parquet", tmp_path / "a.parquet", samples=4).description
    assert [part["truncated"] for part in both["parts"]] == [0, 0]
    assert both["rows"] == 4


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text"], "text"),
        (["sentence", "idx"], "sentence"),
        (["utterance"], "utterance"),
        (["utterance", "label"], "utterance"),
        (["text", "title"], "text"),
        (["text", "text2", "title"], ["text", "text2"]),
        (["sentence1", "sentence2"], ["sentence1", "sentence2"]),
        (["hypothesis", "premise"], ["premise", "hypothesis"]),
        (["question", "sentence"], ["question", "sentence"]),
    ],
)
def test_columns_that_are_found(columns, expected):
    values = {name: [1] if name == "idx" else ["a"] for name in columns}
    assert from_memory(table(**values), reader()).description["column"] == expected


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (
            ["text", "sentence"],
            "have 2 columns that may hold the texts which the models take; name",
        ),
        (
            ["left", "right"],
            r"have 2 columns .* name one as in memory:COLUMN, or a pair as 'column",
        ),
        (["text", "text2", "sentence1", "sentence2"], "have 2 columns that may hold the texts"),
        (["idx", "label"], r"have no columns .* Columns: idx \(int64\), label \(string\)"),
    ],
)
def test_columns_that_are_ambiguous_or_absent(columns, text):
    values = {name: [1] if name == "idx" else ["a"] for name in columns}
    with pytest.raises(HfZipError, match=text):
        from_memory(table(**values), reader())


def test_columns_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    table(left=["who"], right=["play"], n=[1]).to_parquet(path)
    assert decoded(unlabelled(f"{path}:right")) == ["play"]
    assert decoded(unlabelled(path, column="left")) == ["who"]
    pair = unlabelled(path, column=("left", "right"))
    assert decoded(pair) == ["who play"]
    assert pair[0]["token_type_ids"] == [0, 0, 0, 1, 1]
    with pytest.raises(
        HfZipError, match=r"column 'n' of .* holds int64, but the models take texts"
    ):
        unlabelled(f"{path}:n")
    with pytest.raises(HfZipError, match=r"unknown column of data .* 'wrong'"):
        unlabelled(path, column=("left", "wrong"))
    with pytest.raises(
        HfZipError, match=r"3 columns are named .* \(left, right, n\), but the models"
    ):
        unlabelled(path, column=("left", "right", "n"))


def test_a_recipe_names_one_column_or_a_pair():
    def column(value):
        values = {"merge_method": "average", "models": [{"model": "a"}]}
        recipe = Recipe.from_dict({**values, "calibration": {"data": "x", "column": value}})
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        return recipe.calibration.column

    assert column("text") == "text"
    assert column(["a", "b"]) == ("a", "b")
    assert column(None) is None
    with pytest.raises(HfZipError, match=r"calibration.column.1 should be text, not 3"):
        column(["a", 3])


@pytest.mark.parametrize("spec", [CalibrationSpec, lambda **x: EvaluationSpec("t", "d", **x)])
def test_a_length_of_nothing(spec):
    with pytest.raises(HfZipError, match=r"max_length is 0; it should be at least 1"):
        spec(max_length=0)


# What models take.


def test_the_models_decide_between_images_and_texts():
    assert isinstance(reader_of(from_model(vit()), 128), ImageReader)
    found = reader_of(from_model(bert(), processor=tokenizer()), 128)
    assert (found.limit, found.max_length) == (16, 128)
    other = from_model(bert())
    other.model.main_input_name = "input_values"
    with pytest.raises(HfZipError, match="'model' takes input_values, and no data can be read as"):
        reader_of(other, 128)


def test_data_of_the_wrong_kind(tmp_path):
    picture = Image.new("RGB", (8, 8))
    Dataset.from_dict({"image": [picture]}).to_parquet(tmp_path / "images.parquet")
    with pytest.raises(
        HfZipError, match=r"have no columns that may hold the texts .* image \(Image"
    ):
        unlabelled(tmp_path / "images.parquet")
    with pytest.raises(
        HfZipError, match=r"a list of Image, but should be a datasets\.Dataset, a list"
    ):
        from_memory([picture], reader())
    with pytest.raises(
        HfZipError, match=r"the data are a Tensor, but should be a datasets\.Dataset, a list"
    ):
        from_memory(torch.zeros(2, 3, 8, 8), reader())
    with pytest.raises(HfZipError, match=r"no columns that hold images, which .* text \(string\)"):
        from_memory(table(), ImageReader(processor()))
    with pytest.raises(HfZipError, match=r"a list of str, but should be .* a list of PIL images"):
        from_memory(TEXTS, ImageReader(processor()))
    spec = CalibrationSpec(data=(str(tmp_path / "ab.parquet"),), column=("a", "b"))
    table(a=["x"], b=["y"]).to_parquet(tmp_path / "ab.parquet")
    with pytest.raises(
        HfZipError, match=r"2 columns are named .* \(a, b\), but the models take one"
    ):
        load_inputs(spec, ImageReader(processor()), 0)


@pytest.mark.parametrize(
    ("own", "text"), [(None, "have no tokenizer"), (processor(), "an image processor and no token")]
)
def test_texts_need_a_tokenizer(own, text):
    with pytest.raises(HfZipError, match=f"data 'in memory' hold texts, but the models .*{text}"):
        from_memory(TEXTS, TextReader(own))


# Token ids.


def test_texts_become_what_the_tokenizer_makes_of_them():
    words = tokenizer()
    inputs = from_memory(sentences(20), TextReader(words))
    found = {tuple(row["input_ids"]) for row in inputs}
    assert found == {tuple(words(text)["input_ids"]) for text in sentences(20)}
    assert sorted(inputs[0]) == ["attention_mask", "input_ids", "token_type_ids"]


def test_the_longest_come_first_and_equal_ones_in_their_order():
    texts = ["a", "book a table", "is", "who is", "the"]
    inputs = from_memory(texts, reader())
    assert decoded(inputs) == ["book a table", "who is", "a", "is", "the"]


@pytest.mark.parametrize(
    ("limit", "max_length", "own", "expected"),
    [(None, 128, None, 11), (7, 128, None, 7), (16, 5, None, 5), (16, 9, 6, 6)],
)
def test_the_smallest_length_counts(limit, max_length, own, expected):
    words = tokenizer(**({} if own is None else {"model_max_length": own}))
    inputs = from_memory(["who " * 9], TextReader(words, limit, max_length))
    assert len(inputs[0]["input_ids"]) == expected
    assert inputs[0]["input_ids"][-1] == words.sep_token_id


def test_a_length_without_room():
    with pytest.raises(
        HfZipError, match="cut off at 2 tokens, of which 2 are special ones; allow at"
    ):
        from_memory(["who"], reader(max_length=2))
    with pytest.raises(HfZipError, match="of which 3 are special ones; allow at least 4"):
        from_memory([("who", "is")], reader(max_length=3))


def test_the_tokenizer_is_left_as_it_is(tmp_path):
    words = tokenizer()
    words.save_pretrained(tmp_path / "before")
    from_memory(["who " * 9], TextReader(words, max_length=4))
    words.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / x / "tokenizer.json").read_text() for x in ("before", "after"))
    assert before == after


def test_values_that_are_no_texts():
    with pytest.raises(HfZipError, match="row 1 of data 'in memory' holds None for a text; leave"):
        from_memory(table(text=["who", None]), reader())
    bare = tokenizer()
    bare._tokenizer.post_processor = None
    with pytest.raises(HfZipError, match="row 7 of data 'x' has no tokens; leave the row out"):
        tokenize(bare, [("",)], 8, "x", [7])


def test_how_many_tokens_models_take():
    assert longest_text(bert()) == 16
    config = RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=8, max_position_embeddings=20)  # fmt: skip
    assert longest_text(RobertaModel(config)) == 18  # positions begin after the padding token's
    assert longest_text(vit()) is None


# Batches.


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_to_their_longest_text_on_the_right(side):
    words = tokenizer(padding_side=side)
    inputs = from_memory(["a", "book a table", "who is"], TextReader(words))
    first, second = DataLoader(inputs, batch_size=2, collate_fn=collation(inputs))
    assert first["input_ids"].tolist()[1][4:] == [words.pad_token_id]
    assert first["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0]]
    assert second["input_ids"].shape == (1, 3)
    assert collation(Subset(Subset(inputs, [0, 1]), [1])) == inputs.collate


def test_token_ids_in_memory():
    rows = [{"input_ids": torch.tensor([2, 5, 3]), "labels": 1}, {"input_ids": [2, 3], "text": "x"}]
    inputs = from_memory(rows, reader())
    assert inputs[0] == {"input_ids": [2, 5, 3]}
    batch = inputs.collate([inputs[0], inputs[1]])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    stored = Dataset.from_list([{"input_ids": [2, 5], "attention_mask": [1, 0], "text": "a"}])
    assert from_memory(stored, reader())[0] == {"input_ids": [2, 5], "attention_mask": [1, 0]}
    same = from_memory([{"input_ids": [2, 3]}, {"input_ids": [4, 5]}], TextReader())
    assert same.collate([same[0], same[1]])["input_ids"].tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"input_ids": [[2, 3]]}], r"input_ids of input 0 have the shapes \(1, 2\); each should"),
        ([{"input_ids": []}], r"have the shapes \(0,\); each should be \[tokens\], for at least"),
        ([{"input_ids": [2], "attention_mask": [1, 1]}], r"input 0 have the shapes \(1,\), \(2,\)"),
        ([{"input_ids": [2] * 5}], "input 0 has 5 tokens, but the models take at most 4; cut it"),
        ([{"text": "a"}], "the data are a list of dict, but should be"),
        ([["a", "b", "c"]], "the data are a list of list, but should be"),
        ([("a", "b"), ("a",)], "the data are a list of tuple, but should be"),
    ],
)
def test_token_ids_that_models_do_not_take(rows, text):
    with pytest.raises(HfZipError, match=text):
        from_memory(rows, TextReader(tokenizer(), limit=4))


def test_padding_needs_a_padding_token():
    rows = [{"input_ids": [2, 3]}, {"input_ids": [4]}]
    with pytest.raises(HfZipError, match="have to be padded, but there is no tokenizer; give"):
        from_memory(rows, TextReader())
    words = tokenizer()
    words.pad_token = None
    with pytest.raises(HfZipError, match="but there is no padding token; give a tokenizer that"):
        from_memory(["a", "who is"], TextReader(words))


# Labels.


def test_labels_follow_their_texts(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["order", "question"])})
    rows = {"text": ["play", "who is the best", "book a table"], "label": [0, 1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    inputs = labelled(tmp_path / "a.parquet")
    assert decoded(inputs) == ["who is the best", "book a table", "play"]
    assert [row["labels"] for row in inputs] == [0, 1, 1]
    assert inputs.description["labels_matched_by"] == "name"
    batch = inputs.collate([inputs[i] for i in range(3)])
    assert batch["labels"].tolist() == [0, 1, 1]


def test_a_column_of_labels_is_no_column_of_texts(tmp_path):
    (tmp_path / "a.csv").write_text("utterance,intent\nplay,order\nwho,question\n")
    inputs = labelled(tmp_path / "a.csv", label_column="intent")
    assert inputs.description["column"] == "utterance"
    assert [row["labels"] for row in inputs] == [1, 0]


def test_labelled_data_in_memory():
    def read(data):
        return labelled_from_memory(data, reader(), LABELS, "t")

    rows = table(text=["play", "who is"], label=["order", "question"])
    assert [row["labels"] for row in read(rows)] == [0, 1]
    ids = [{"input_ids": [2, 3], "labels": 0}, {"input_ids": [2, 5, 3], "labels": torch.tensor(1)}]
    for data in (ids, Dataset.from_list([{**row, "labels": int(row["labels"])} for row in ids])):
        assert [row["labels"] for row in read(data)] == [1, 0]
    others = object()
    assert read(others) is others
    assert read([]) == []
    with pytest.raises(
        HfZipError, match=r"1 of 2 inputs .* of task 't' have no 'labels' \(the first"
    ):
        read([ids[0], {"input_ids": [2]}])


def test_texts_in_a_list_are_no_names_of_data(tmp_path):
    def calibration(*values):
        return read_request(["a", "b"], "average", calibration=list(values)).calibration

    assert calibration("who is the best", "play") == ["who is the best", "play"]
    assert calibration("trec", "snips") is None
    assert calibration("my texts.txt") is None
    (tmp_path / "my texts").mkdir()
    assert calibration(str(tmp_path / "my texts")) is None


@pytest.mark.parametrize(
    "text", ["a long text " * 40, "a long : text " * 40, "~nobody said so", "a \0 in a text"]
)
def test_texts_that_no_file_could_be_called_are_no_names(text):
    assert not names_data(text)
