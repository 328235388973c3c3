"""Texts that a model draws, or that a corpus is recombined to, instead of those of a data set."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import BertForMaskedLM, BertForPreTraining
from typer.testing import CliRunner

import hf_zip
from hf_zip.calibration import load_inputs
from hf_zip.cli import app
from hf_zip.data import names_data
from hf_zip.errors import HfZipError
from hf_zip.generated.chain import chain_of, chained_text
from hf_zip.generated.masked import Sampling, draw_tokens
from hf_zip.given import given_calibration
from hf_zip.images import ImageReader
from hf_zip.metadata import _hub_data
from hf_zip.pairs import PairReader
from hf_zip.recipe import CalibrationSpec, EvaluationSpec, Recipe
from hf_zip.redact import described_publicly, published
from hf_zip.report import read
from hf_zip.sampled import sampled_texts
from hf_zip.texts import TextReader
from tests.launch import torchrun
from tests.models import processor, vit
from tests.texts import SPECIAL, WORDS, bert, sentences, tokenizer

MASK, BARRED = 3, torch.tensor([False, False, False, True])


def randoms(count, seed=0):
    return [np.random.default_rng([seed, number]) for number in range(count)]


def drawn(predict, ids, sampling, free=None):
    free = torch.ones_like(ids, dtype=torch.bool) if free is None else free
    return draw_tokens(predict, ids, free, MASK, BARRED, randoms(len(ids)), sampling)


def constant(logits):
    return lambda ids: torch.tensor(logits).expand(*ids.shape, -1)


def shares(ids):
    return torch.bincount(ids.flatten(), minlength=4) / ids.numel()


# Tokens of a masked language model.


def test_sweeps_draw_from_the_joint_distribution_of_a_model():
    joint = torch.tensor([[0.3, 0.05, 0.05], [0.02, 0.2, 0.08], [0.05, 0.05, 0.2]])

    def predict(ids):
        """Each of two positions given the other; given a mask, something else."""
        given = (
            torch.cat([joint, torch.full((1, 3), 1 / 3)]),
            torch.cat([joint.T, torch.eye(3)[:1]]),
        )
        first, second = given[1][ids[:, 1]], given[0][ids[:, 0]]
        logits = torch.stack([first, second], dim=1).log()
        return torch.cat([logits, torch.full((len(ids), 2, 1), 9.0)], dim=2)

    found = drawn(predict, torch.zeros(2500, 2, dtype=torch.long), Sampling(sweeps=6, steps=2))
    counts = torch.bincount(3 * found[:, 0] + found[:, 1], minlength=9).view(3, 3) / 2500
    assert (counts - joint).abs().max() < 0.03


def test_tokens_are_drawn_by_temperature_from_the_likeliest_but_never_barred_ones():
    predict, ids = constant([1.0, 3.0, 2.0, 9.0]), torch.zeros(400, 10, dtype=torch.long)
    once = Sampling(sweeps=1)
    expected = torch.tensor([1.0, 3.0, 2.0, -torch.inf]).softmax(0)
    assert (shares(drawn(predict, ids, once)) - expected).abs().max() < 0.03
    expected = torch.tensor([0.5, 1.5, 1.0, -torch.inf]).softmax(0)
    found = shares(drawn(predict, ids, replace(once, temperature=2.0)))
    assert (found - expected).abs().max() < 0.03
    found = shares(drawn(predict, ids, replace(once, top_k=2)))
    expected = torch.tensor([-torch.inf, 3.0, 2.0, -torch.inf]).softmax(0)
    assert (found - expected).abs().max() < 0.03
    assert (drawn(predict, ids, replace(once, top_k=1)) == 1).all()


def test_a_sweep_masks_every_position_once_a_part_at_a_time_and_nothing_else():
    seen = []

    def predict(ids):
        seen.append(ids == MASK)
        return constant([1.0, 3.0, 2.0, 9.0])(ids)

    ids = torch.zeros(2, 12, dtype=torch.long)
    free = torch.tensor([[False, *[True] * 10, False], [False, *[True] * 2, *[False] * 9]])
    found = drawn(predict, ids, Sampling(sweeps=3, steps=4), free)
    assert torch.equal(seen[0], free)
    assert (found[~free] == 0).all()
    first = [int(mask[0].sum()) for mask in seen]
    assert first == [10, 7, 4, 2, *[3, 3, 2, 2] * 2]
    for sweep in (seen[4:8], seen[8:]):
        assert torch.equal(torch.stack(sweep).sum(dim=0), free.long())
    assert not all(torch.equal(*pair) for pair in zip(seen[4:8], seen[8:], strict=True))


def test_other_texts_of_a_batch_change_nothing():
    table = torch.randn(4, 4, generator=torch.manual_seed(0))

    def predict(ids):
        return table[ids].cumsum(dim=1)

    ids = torch.zeros(6, 9, dtype=torch.long)
    together = drawn(predict, ids, Sampling())
    barred, one = BARRED, randoms(6)[4]
    free = torch.ones(1, 9, dtype=torch.bool)
    alone = draw_tokens(predict, ids[:1], free, MASK, barred, [one], Sampling())
    assert torch.equal(alone[0], together[4])
    assert len({tuple(own) for own in together.tolist()}) == 6


# Texts of a model.


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A masked language model, two classifiers, and a corpus."""
    folder = tmp_path_factory.mktemp("work")
    own = {"base": bert(cls=BertForMaskedLM), "mood": bert(2, 1), "intent": bert(3, 2)}
    for name, model in own.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "notes.txt").write_text("\n".join(sentences(40, seed=7)))
    return folder


def test_a_seed_and_a_number_decide_a_text(workshop):
    base = str(workshop / "base")
    many, notes = sampled_texts(base, 40, 3, 128, progress=False)
    few, _ = sampled_texts(base, 5, 3, 128, progress=False)
    assert many[:5] == few
    assert len(set(many)) == 40
    assert len(set(many) & set(sampled_texts(base, 40, 4, 128, progress=False)[0])) < 3
    assert notes.pop("model_sha256") == hf_zip.sources.load_source(base).sha256
    sampling = {"sweeps": 4, "steps": 8, "temperature": 1.0, "top_k": 100}
    assert notes == {"seed": 3, "tokens": [4, 14], **sampling}


def test_a_model_runs_on_whole_blocks_whatever_is_asked_for(workshop, monkeypatch):
    sizes = []

    def recorded(predict, ids, *more):
        sizes.append(len(ids))
        return draw_tokens(predict, ids, *more)

    monkeypatch.setattr(hf_zip.sampled, "draw_tokens", recorded)
    for count, blocks in ((1, 1), (32, 1), (33, 2)):
        assert len(sampled_texts(str(workshop / "base"), count, 0, 5, progress=False)[0]) == count
        assert sizes == [32] * blocks
        sizes.clear()


def test_padding_changes_nothing(workshop, monkeypatch):
    together, _ = sampled_texts(str(workshop / "base"), 6, 0, 128, progress=False)
    monkeypatch.setattr(hf_zip.sampled, "_BLOCK", 1)
    assert sampled_texts(str(workshop / "base"), 6, 0, 128, progress=False)[0] == together


def test_texts_have_the_lengths_that_they_should_and_no_special_tokens(workshop):
    words = tokenizer()
    found, notes = sampled_texts(str(workshop / "base"), 128, 0, 9, progress=False)
    assert notes["tokens"] == [4, 7]
    # Pieces of words without a word before them are words to a tokenizer; so lengths may differ.
    plain = [text for text in found if "##" not in text and "s" not in text.split()]
    lengths = Counter(len(words(text)["input_ids"]) - 2 for text in plain)
    assert lengths.keys() == {4, 5, 6, 7}
    assert not [text for text in found for token in SPECIAL if token in text]
    short, notes = sampled_texts(str(workshop / "base"), 2, 0, 1, progress=False)
    assert notes["tokens"] == [1, 1]
    assert {text.removeprefix("##") in {"s", *WORDS} for text in short} == {True}


def test_a_model_draws_what_it_predicts(workshop, tmp_path):
    model = bert(cls=BertForMaskedLM, tie_word_embeddings=False, vocab_size=20)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().bias.fill_(-9.0)
        model.get_output_embeddings().bias[[5, 13]] = torch.tensor([0.0, 1.0])  # who, the
        model.get_output_embeddings().bias[[2, 18]] = 20.0  # a special token, and one of no word
    model.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    texts, _ = sampled_texts(str(tmp_path / "base"), 64, 0, 128, progress=False)
    counts = Counter(" ".join(texts).split())
    assert abs(counts["the"] / counts.total() - 1 / (1 + np.exp(-1))) < 0.05
    assert counts["the"] + counts["who"] >= counts.total() - 2


def test_weights_of_other_heads_may_be_left_over(tmp_path):
    bert(cls=BertForPreTraining).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    texts, _ = sampled_texts(str(tmp_path), 2, 0, 128, progress=False)
    BertForMaskedLM.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert sampled_texts(str(tmp_path), 2, 0, 128, progress=False)[0] == texts


def test_models_that_cannot_draw_are_refused(workshop, tmp_path):
    def draw(folder):
        sampled_texts(str(folder), 2, 0, 128, progress=False)

    lacking = r"lacks 6 weights of a BertForMaskedLM \(cls.predictions.bias, .*pretrained base of a"
    with pytest.raises(HfZipError, match=lacking):
        draw(workshop / "mood")
    vit().save_pretrained(tmp_path / "images")
    with pytest.raises(HfZipError, match="is a ViTForImageClassification, of which there is none"):
        draw(tmp_path / "images")
    bert(cls=BertForMaskedLM).save_pretrained(tmp_path / "bare")
    with pytest.raises(HfZipError, match="has no tokenizer to draw texts with; save its own"):
        draw(tmp_path / "bare")
    for kind in ("mask_token", "pad_token"):
        lacking = tokenizer()
        setattr(lacking, kind, None)
        lacking.save_pretrained(tmp_path / "bare")
        with pytest.raises(HfZipError, match=f"the tokenizer of .* has no {kind}, which texts are"):
            draw(tmp_path / "bare")


@pytest.mark.slow
def test_two_processes_draw_the_same_texts(workshop, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import json, sys
from pathlib import Path
from hf_zip.collect import make_accelerator
from hf_zip.sampled import sampled_texts
found = sampled_texts(sys.argv[1], 70, 3, 128, progress=False)
accelerator = make_accelerator()
Path(sys.argv[2] + str(accelerator.process_index)).write_text(json.dumps(found))
accelerator.wait_for_everyone()
accelerator.end_training()
"""
    )
    base = str(workshop / "base")
    torchrun(script, base, tmp_path / "found", processes=2)
    alone = list(sampled_texts(base, 70, 3, 128, progress=False))
    for process in (0, 1):
        assert json.loads((tmp_path / f"found{process}").read_text()) == alone


# Texts of a word chain.


def test_a_word_follows_another_as_often_as_in_the_corpus():
    chain = chain_of(["a b", "a  b c ", "a c", "", "b d e f g"])
    assert Counter(chain.following[""]) == {"a": 3, "b": 1}
    assert Counter(chain.following["a"]) == {"b": 2, "c": 1}
    assert Counter(chain.following["b"]) == {"": 1, "c": 1, "d": 1}
    assert chain.longest == 5
    found = Counter(chained_text(chain, 0, number) for number in range(1000))
    # All that begin with "a" are in the corpus, or longer than what is.
    assert abs(found["b", True] / 1000 - 0.5) < 0.05
    assert abs(found["b c", True] / 1000 - 0.5) < 0.05


def test_texts_of_a_chain_are_new_and_of_words_in_the_order_of_the_corpus():
    corpus = sentences(60, seed=1)
    chain = chain_of(corpus)
    pairs = {pair for text in corpus for pair in pairwise(text.split())}
    found = [chained_text(chain, 5, number) for number in range(100)]
    assert found[7] == chained_text(chain, 5, 7)
    assert found != [chained_text(chain, 6, number) for number in range(100)]
    assert all(new for _, new in found)
    texts = [text for text, _ in found]
    assert not set(texts) & set(corpus)
    assert len(set(texts)) > 80
    for words in map(str.split, texts):
        assert len(words) <= 9
        assert set(pairwise(words)) <= pairs
        assert words[0] in {text.split()[0] for text in corpus}
        assert words[-1] in {text.split()[-1] for text in corpus}


def test_texts_are_cut_where_no_attempt_was_short_enough(monkeypatch):
    monkeypatch.setattr("hf_zip.generated.chain._ATTEMPTS", 1)
    chain = chain_of(sentences(60, seed=1))
    lengths = Counter(len(chained_text(chain, 0, i)[0].split()) for i in range(100))
    assert max(lengths) == chain.longest == 9
    assert lengths[9] > 5


def test_a_copy_is_made_only_where_nothing_else_can_be():
    texts = [f"w{i}" for i in range(12)]
    found = {chained_text(chain_of(texts), 0, number) for number in range(40)}
    assert found <= {(text, False) for text in texts}


# Both as data.


def reader(length=128):
    return TextReader(tokenizer(), 16, length)


def inputs(*names, samples=8, seed=0, **more):
    return load_inputs(CalibrationSpec(data=names, samples=samples, **more), reader(), seed)


def test_texts_are_read_by_the_tokenizer_of_the_merge(workshop):
    name = f"sampled:{workshop / 'base'}"
    found = load_inputs(CalibrationSpec(data=(name,), samples=12), reader(9), 3, progress=False)
    texts, notes = sampled_texts(str(workshop / "base"), 12, 3, 9, progress=False)
    wanted = sorted((tokenizer()(text)["input_ids"] for text in texts), key=len)
    assert sorted((row["input_ids"] for row in found), key=len) == wanted
    read_as = {"max_length": 9, "truncated": 0}
    assert found.description == {"data": name, "rows": 12, **notes, **read_as}


def test_a_corpus_is_recombined_and_described(workshop):
    name = f"recombined:{workshop / 'notes.txt'}"
    found = inputs(name, samples=12, seed=3)
    chain = chain_of((workshop / "notes.txt").read_text().splitlines())
    texts = [chained_text(chain, 3, number)[0] for number in range(12)]
    wanted = sorted((tokenizer()(text)["input_ids"] for text in texts), key=len)
    assert sorted((row["input_ids"] for row in found), key=len) == wanted
    wanted = {"data": name, "column": "text", "rows": 12, "rows_available": 40, "seed": 3}
    assert wanted.items() <= found.description.items()
    assert found.description["copies"] == 0


def test_pairs_and_words_of_a_corpus_are_texts_too(tmp_path):
    texts = sentences(12, seed=1)
    pairs = {"text": texts[:6], "text2": texts[6:]}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    words = {"tokens": [text.split() for text in (*texts[::2], *texts[1::2])]}
    Dataset.from_dict(words).to_parquet(tmp_path / "words.parquet")
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    columns = [
        inputs(f"recombined:{tmp_path / name}.parquet").description["column"]
        for name in ("pairs", "words", "texts")
    ]
    assert columns == [["text", "text2"], "tokens", "text"]


def test_a_corpus_of_few_texts_is_refused(tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join([f"text {i}" for i in range(9)] * 3))
    with pytest.raises(HfZipError, match=r"have 9 different texts, of which few .* at least 10"):
        inputs(f"recombined:{few}")
    Dataset.from_dict({"text": ["a", None]}).to_parquet(tmp_path / "gap.parquet")
    with pytest.raises(HfZipError, match=r"row 1 of data .*gap.parquet' holds None for a text"):
        inputs(f"recombined:{tmp_path / 'gap.parquet'}")


@pytest.mark.parametrize("name", ["sampled:nowhere", "recombined:nowhere.txt"])
def test_models_that_take_images_are_refused(name):
    message = f"{name!r} draws texts, but the models take {{}}; name a data set of {{}}"
    spec, images = CalibrationSpec(data=(name,)), ImageReader(processor())
    with pytest.raises(HfZipError, match=message.format("images", "images")):
        load_inputs(spec, images, 0)
    with pytest.raises(HfZipError, match=message.format(*["images with texts"] * 2)):
        load_inputs(spec, PairReader(images, reader()), 0)


def test_what_cannot_read_texts_is_refused_before_any_is_drawn():
    for lacking, message in (
        (TextReader(None), "no tokenizer"),
        (reader(2), "cut off at 2 tokens"),
    ):
        with pytest.raises(HfZipError, match=message):
            load_inputs(CalibrationSpec(data=("sampled:nowhere",)), lacking, 0)


def test_names_that_say_too_little_or_the_same_twice_are_refused(workshop):
    with pytest.raises(HfZipError, match="'sampled:' names nothing to draw texts from; name a mod"):
        CalibrationSpec(data=("sampled:",))
    with pytest.raises(
        HfZipError, match=r"'recombined:' names nothing .*; name a data set or a fi"
    ):
        CalibrationSpec(data=("a.txt", "recombined:"))
    name = f"recombined:{workshop / 'notes.txt'}"
    with pytest.raises(HfZipError, match=r"notes.txt' is named twice, which gives the same inputs"):
        inputs(name, name)
    with pytest.raises(HfZipError, match="to be measured on 'sampled:base', whose texts have no"):
        EvaluationSpec(task="mood", data="sampled:base")


def test_a_name_in_python_is_one_of_data(workshop):
    base, notes = f"sampled:{workshop / 'base'}", f"recombined:{workshop / 'notes.txt'}"
    for name in (base, notes, "sampled:org/base@main", "recombined:org/corpus", "recombined:a.csv"):
        assert names_data(name)
    assert not names_data("sampled: a text")
    assert not names_data("recombined:org/corpus and more")
    assert given_calibration([base, "a folder/"]) == ({"data": [base, "a folder/"]}, None)


@pytest.mark.parametrize("kind", ["sampled", "recombined"])
def test_a_merge_by_the_command_line(workshop, tmp_path, kind):
    own = {"sampled": "base", "recombined": "notes.txt"}[kind]
    name = f"{kind}:{workshop / own}"
    arguments = ["merge", str(workshop / "mood"), str(workshop / "intent"), "--method", "average"]
    arguments += ["--calibration", name, "--samples", "12", "--seed", "4", "--force"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    report = read(tmp_path / "out")
    assert report.calibration["data"] == name
    assert report.calibration["seed"] == 4
    card = ModelCard.load(tmp_path / "out" / "README.md")
    shown = card.text.replace("\\", "")
    assert f"data: {kind}:{own}; " in shown
    said = {"sampled": "seed: 4; tokens: [4, 14]; sweeps: 4", "recombined": "seed: 4; copies: 0"}
    assert said[kind] in shown
    assert str(workshop) not in card.content
    assert card.data.get("datasets") is None
    public = published(report)
    assert str(workshop) not in public.to_json()
    assert Recipe.from_dict(public.recipe).calibration.data == (f"{kind}:{own}",)


@pytest.fixture(scope="module")
def pickled(workshop):
    """The masked language model with its weights in a pickle."""
    folder = workshop / "pickled"
    shutil.copytree(workshop / "base", folder)
    (folder / "model.safetensors").unlink()
    torch.save(bert(cls=BertForMaskedLM).state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_merge_in_python_says_whether_pickles_are_read_and_bars_shown(workshop, pickled, capsys):
    def merge(name, **more):
        parents = [str(workshop / parent) for parent in ("mood", "intent")]
        given = {"data": f"sampled:{name}", "samples": 4}
        hf_zip.merge(parents, method="average", calibration=given, force=True, **more)
        return capsys.readouterr().err

    with pytest.raises(HfZipError, match=r"holds its weights in pytorch_model.bin, a pickle"):
        merge(pickled)
    assert "drawing texts" in merge(pickled, allow_pickle=True)
    assert "drawing texts" not in merge(workshop / "base", progress=False)


def test_a_model_is_rooted_by_the_command_line(workshop, pickled, tmp_path):
    arguments = ["root", str(workshop / "mood"), "--root", str(workshop / "base")]
    arguments += ["--data", f"sampled:{pickled}", "--samples", "8", "--seed", "3"]
    arguments += ["--set", "training.steps=1", "--set", "training.batch_size=4", "--allow-pickle"]
    out = tmp_path / "rooted"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads((out / "hf_zip_rooting.json").read_text())["data"]
    assert (data["rows"], data["seed"], data["top_k"]) == (8, 3, 100)
    assert "sampled:pickled" in (out / "README.md").read_text()
    assert str(workshop) not in (out / "README.md").read_text()


def test_a_recipe_shares_the_samples_among_both(workshop):
    names = [f"sampled:{workshop / 'base'}", f"recombined:{workshop / 'notes.txt'}"]
    found = inputs(*names, samples=9).description
    assert found["data"] == names
    assert [part["rows"] for part in found["parts"]] == [5, 4]
    values = {"merge_method": "regmean", "models": [{"model": "a"}], "calibration": {"data": names}}
    recipe = Recipe.from_dict(values)
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


def test_what_is_published_says_what_was_drawn_from_but_not_where_it_lies():
    found = described_publicly(
        {
            "data": ["sampled:/home/me/base", "recombined:~/a b/notes.txt", "sampled:org/base"],
            "note": "recombined:C:\\texts\\notes.txt",
        }
    )
    assert found["data"] == ["sampled:base", "recombined:notes.txt", "sampled:org/base"]
    assert found["note"] == "recombined:notes.txt"


def test_a_card_names_the_data_set_that_was_recombined_but_no_model():
    parts = [
        {"data": "recombined:org/corpus@main", "revision": "c" * 40},
        {"data": "sampled:org/base", "model_revision": "d" * 40},
    ]
    assert list(_hub_data({"data": ["one", "two"], "parts": parts})) == ["org/corpus"]
