from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertForMaskedLM,
    PreTrainedTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

from hf_zip.errors import HfZipError
from hf_zip.preflight import preflight
from hf_zip.sources import from_model
from hf_zip.tasks import resolve_tasks
from hf_zip.vocabulary import in_one_vocabulary, order_between, reorder_vocabulary, reordering
from tests.models import processor, randomise, vit
from tests.texts import SPECIAL, VOCABULARY, WORDS, bert, tokenizer

TEXT = "who is the best song"
SHUFFLED = (*SPECIAL[::-1], *WORDS[::-1])


def source(name="a", words=None, model=None, **options):
    words = tokenizer() if words is None else words
    return from_model(model or bert(**options), name=name, processor=words)


def check(*sources, force=False):
    return preflight(sources, resolve_tasks(sources, "apart"), force=force)


def messages(found, code):
    return [finding.message for finding in found.findings if finding.code == code]


# Orders.


def test_orders_by_hand():
    first, other = {"a": 0, "b": 1, "c": 2}, {"c": 0, "a": 1, "b": 2}
    assert reordering(first, other, 3).tolist() == [1, 2, 0]
    assert reordering(first, first, 3).tolist() == [0, 1, 2]
    assert reordering({}, {}, 2).tolist() == [0, 1]


def test_ids_without_tokens_follow_in_their_order():
    assert reordering({"a": 0, "b": 2}, {"a": 1, "b": 4}, 5).tolist() == [1, 0, 4, 2, 3]


@pytest.mark.parametrize(
    ("first", "other", "text"),
    [
        ({"a": 0}, {"b": 0}, "have 1 and 1 tokens, and they are not the same; only vocabularies"),
        ({"a": 0, "b": 0}, {"a": 0, "b": 1}, "ids of the 2 tokens should be distinct and below 2"),
        ({"a": 0, "b": 1}, {"a": 0, "b": 2}, "ids of the 2 tokens should be distinct and below 2"),
    ],
)
def test_vocabularies_without_an_order(first, other, text):
    with pytest.raises(HfZipError, match=text):
        reordering(first, other, 2)


def reordered(model, words=SHUFFLED):
    """The same function of texts, for a tokenizer of another order."""
    order = reordering(tokenizer(words).get_vocab(), tokenizer().get_vocab(), len(VOCABULARY))
    reorder_vocabulary(model, order)
    return model


def test_a_model_of_another_order_computes_the_same():
    model, other = bert(), reordered(bert())
    batches = [t([TEXT], return_tensors="pt") for t in (tokenizer(), tokenizer(SHUFFLED))]
    assert not torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert torch.equal(model(**batches[0]).logits, other(**batches[1]).logits)
    assert not torch.allclose(model(**batches[1]).logits, other(**batches[1]).logits)
    assert (model.config.pad_token_id, other.config.pad_token_id) == (0, 4)
    assert other.get_input_embeddings().padding_idx == 4


@pytest.mark.parametrize("tied", [True, False])
def test_what_decodes_to_words_is_put_in_order_too(tied):
    options = {"cls": BertForMaskedLM, "tie_word_embeddings": tied}
    model, other = bert(**options), reordered(bert(**options))
    back = reordering(tokenizer(SHUFFLED).get_vocab(), tokenizer().get_vocab(), len(VOCABULARY))
    batches = [t([TEXT], return_tensors="pt") for t in (tokenizer(), tokenizer(SHUFFLED))]
    expected, found = model(**batches[0]).logits, other(**batches[1]).logits
    torch.testing.assert_close(found, expected[..., back])


# Sources.


def test_sources_of_one_order_are_left_as_they_are():
    sources = [source(), source("b", seed=1), source("c", words=processor()), source("d")]
    sources[3] = replace(sources[3], processor=None)
    found = in_one_vocabulary(sources)
    assert all(a is b for a, b in zip(found, sources, strict=True))
    assert order_between(source(), source("b", tokenizer((*VOCABULARY[:-1], "other")))) is None


def test_sources_are_put_in_the_order_of_the_first():
    other = source("b", tokenizer(SHUFFLED), reordered(bert(seed=1)))
    first, second = in_one_vocabulary([source(), other])
    assert second.processor is first.processor
    assert torch.equal(
        second.model.get_input_embeddings().weight, bert(seed=1).get_input_embeddings().weight
    )
    assert second.model.config.pad_token_id == 0


def roberta(vocabulary, seed=0):
    ids = {word: i for i, word in enumerate(vocabulary)}
    words = RobertaTokenizer(vocab=ids, merges=[])
    config = RobertaConfig(vocab_size=len(ids), hidden_size=12, num_hidden_layers=1,
                           num_attention_heads=3, intermediate_size=20, max_position_embeddings=20,
                           pad_token_id=ids["<pad>"], num_labels=2)  # fmt: skip
    model = randomise(RobertaForSequenceClassification(config).eval(), seed)
    return from_model(model, name=f"m{seed}", processor=words)


def test_positions_that_follow_the_padding_token_cannot_be_put_in_order():
    first = roberta(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"])
    swapped = roberta(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "b", "a"], seed=1)
    assert order_between(first, swapped).tolist() == [0, 1, 2, 3, 4, 6, 5]
    moved = roberta(["<pad>", "<s>", "</s>", "<unk>", "<mask>", "a", "b"], seed=1)
    with pytest.raises(
        HfZipError, match="counts positions from the id of the padding token, which"
    ):
        order_between(first, moved)


# Preflight.


def test_equal_tokenizers_are_nothing_to_tell():
    found = check(source(), source("b", seed=1))
    assert {finding.code for finding in found.findings} == {"task"}


def test_another_order_is_told():
    found = check(source(), source("b", tokenizer(SHUFFLED), reordered(bert(seed=1))))
    (message,) = messages(found, "vocabulary")
    moved = sum(a != b for a, b in zip(VOCABULARY, SHUFFLED, strict=True))
    assert message == (
        f"'a' and 'b' have the same 17 tokens, {moved} of them with other ids; the word embeddings "
        "of 'b' are put into the order of the first's"
    )
    assert messages(found, "config") == []  # the ids of [PAD] differ, and mean the same


def test_an_order_that_cannot_be_made_is_refused(monkeypatch):
    def refuse(*_):
        raise HfZipError("no order")

    monkeypatch.setattr("hf_zip.tokenization.order_between", refuse)
    with pytest.raises(HfZipError, match="1 reason:\n- no order"):
        check(source(), source("b", tokenizer(SHUFFLED), reordered(bert(seed=1))), force=True)


def test_special_tokens_of_configs_mean_what_the_tokenizers_say():
    text = r"differ in pad_token_id, '\[PAD\]' and '\[UNK\]', so the same weights mean different"
    with pytest.raises(HfZipError, match=text):
        check(source(), source("b", seed=1, pad_token_id=1))
    bare = [replace(s, processor=None) for s in (source(), source("b", pad_token_id=1))]
    with pytest.raises(HfZipError, match="differ in pad_token_id, 0 and 1, so"):
        check(*bare)


def test_different_vocabularies_are_refused():
    other = tokenizer((*VOCABULARY[:-3], "red", "green", "blue"))
    text = (
        r"'a' and 'b' have different vocabularies: 14 tokens are shared, 3 only in the first "
        r"\('##s', 'best', 'movie'\) and 3 only in the second \('blue', 'green', 'red'\), so .*"
        r"Merge models that were fine-tuned with one tokenizer, or pass --force"
    )
    with pytest.raises(HfZipError, match=text):
        check(source(), source("b", other, seed=1))
    found = check(source(), source("b", other, seed=1), force=True)
    assert messages(found, "vocabulary")[0].endswith("are merged whatever they mean")


def test_vocabularies_of_different_sizes():
    words = (*VOCABULARY, "more", "and", "yet", "others")
    other = source("b", tokenizer(words), seed=1, vocab_size=len(words))
    text = (
        r"differ in vocab_size, 17 and 21; (.|\n)*17 tokens are shared, 0 only in the first \(none"
    )
    with pytest.raises(HfZipError, match=text):
        check(source(), other)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"do_lower_case": False},
            r"differently \(they differ in do_lower_case True and False\): '",
        ),
        ({"truncation_side": "left"}, "cut long texts off on different sides, right and left"),
        (
            {"cls_token": "[MASK]"},
            r"differ in cls_token '\[CLS\]' and '\[MASK\]'\): .* becomes '\[CLS",
        ),
    ],
)
def test_tokenizers_that_tokenize_differently(options, text):
    with pytest.raises(HfZipError, match=text):
        check(source(), source("b", tokenizer(**options), seed=1))
    found = check(source(), source("b", tokenizer(**options), seed=1), force=True)
    assert [finding.level for finding in found.findings if finding.code == "tokenizer"] == [
        "warning"
    ]


def test_tokenizers_that_differ_in_pairs_only():
    other = tokenizer()
    ids = [(token, other.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    other._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B [SEP]", special_tokens=ids
    )
    with pytest.raises(HfZipError, match="have the same tokens but tokenize texts differently: "):
        check(source(), source("b", other, seed=1))


def test_settings_without_effect_are_told():
    found = check(source(), source("b", tokenizer(mask_token="who"), seed=1))
    (message,) = messages(found, "tokenizer")
    assert message.startswith("'a' and 'b' differ in mask_token '[MASK]' and 'who', which did not")


def test_lengths_that_differ():
    found = check(source(), source("b", tokenizer(model_max_length=9), seed=1))
    (message,) = messages(found, "tokenizer")
    assert message.startswith("'a' and 'b' take texts of up to 16 and 9 tokens; the merged model")
    # An unset length, and one beyond what the model takes, are both the model's.
    assert messages(check(source(), source("b", tokenizer(model_max_length=99))), "tokenizer") == []


def test_a_tokenizer_on_one_side_only():
    bare = replace(source("b", seed=1), processor=None)
    text = "of 'a' and 'b' only 'a' has a tokenizer; check that both were trained on inputs that it"
    assert messages(check(source(), bare), "processor")[0].startswith(text)
    assert messages(check(bare, source()), "processor")[0].startswith("of 'b' and 'a' only 'a' has")


def test_a_tokenizer_and_an_image_processor():
    with pytest.raises(
        HfZipError, match="'a' has a tokenizer, but 'b' has a processor; save beside"
    ):
        check(source(), source("b", processor(), seed=1), force=True)


def test_a_tokenizer_with_more_ids_than_the_model():
    text = "the tokenizer of 'b' has ids up to 17, but the model embeds 17; save the tokenizer that"
    with pytest.raises(HfZipError, match=text):
        check(source(), source("b", tokenizer((*VOCABULARY, "more")), seed=1), force=True)


def test_tokenizers_beside_image_models_are_not_asked():
    sources = [from_model(vit(seed=i), name=str(i), processor=processor()) for i in range(2)]
    assert in_one_vocabulary(sources) == tuple(sources)


def test_slow_tokenizers_are_compared_too():
    class Slow(PreTrainedTokenizer):
        def __init__(self, words, **options):
            self._ids = {word: i for i, word in enumerate(words)}
            super().__init__(unk_token="[UNK]", pad_token="[PAD]", **options)

        @property
        def vocab_size(self):
            return len(self._ids)

        def get_vocab(self):
            return dict(self._ids)

        def _tokenize(self, text, **_):
            return text.lower().split()

        def _convert_token_to_id(self, token):
            return self._ids.get(token, self._ids["[UNK]"])

        def _convert_id_to_token(self, index):
            return list(self._ids)[index]

    found = check(
        source(words=Slow(VOCABULARY)),
        source("b", Slow(SHUFFLED), reordered(bert(seed=1))),
    )
    assert messages(found, "vocabulary")[0].startswith("'a' and 'b' have the same 17 tokens")
    text = "have the same tokens but tokenize texts differently"
    with pytest.raises(HfZipError, match=text):
        check(source(), source("b", Slow(VOCABULARY), seed=1))
