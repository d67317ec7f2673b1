from __future__ import annotations

import open_clip
import pytest
import torch

from finelens.backbones.registry import load_backbone
from finelens.engine.flops import count
from finelens.protocol import NotAvailableError
from tests.backbones.checkpoints import open_clip_model, write_tiny_vit

TEXTS = ["a photo of a cat", "dog", "a very long description of a bird with a red crown and a yellow belly", "", "word " * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_vit(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(f"local:{folder}")


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer()


def test_text_features_equal_open_clip_at_full_length(backbone, folder, tokenizer):
    with torch.no_grad():
        expected = open_clip_model(folder).encode_text(tokenizer(TEXTS), normalize=True)
    features = backbone.encode_text(TEXTS)
    torch.testing.assert_close(features, expected, atol=5e-6, rtol=0)
    assert (features.dtype, features.requires_grad) == (torch.float32, False)


def test_no_texts_no_features(backbone):
    assert backbone.encode_text([]).shape == (0, 48)


def record_lengths(backbone, texts):
    lengths = []
    handle = backbone.text.model.get_submodule("transformer").register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[:2]))
    backbone.encode_text(texts)
    handle.remove()
    return lengths


def test_causal_tower_is_trimmed_in_length_sorted_batches(backbone):
    texts = ["cat"] * 40 + ["a photo of a cat"] * 40 + ["cat"] * 40
    assert record_lengths(backbone, texts) == [(64, 3), (56, 7)]


def test_work_of_encoding_goes_with_the_tokens(backbone, tokenizer):
    """A block multiplies each token by 12 W^2 numbers and each pair of tokens by 2 W; nothing else depends on the texts but one projection each."""
    width, layers, dim = 32, 2, 48

    def expected(texts: int, length: int) -> int:
        return 2 * texts * (layers * (12 * width**2 * length + 2 * width * length**2) + width * dim)

    for text in ("cat", "a photo of a cat", " ".join(["cat"] * 100)):
        length = min(backbone.count_tokens([text])[0], backbone.context_length)
        assert count(lambda text=text: backbone.encode_text([text] * 3)) == expected(3, length)
    assert expected(1, 22) < expected(1, 77) / 3.5


def test_order_of_texts_is_kept(backbone):
    texts = [f"{'long ' * (i % 7)}word {i}" for i in range(150)]
    together = backbone.encode_text(texts)
    alone = torch.cat([backbone.encode_text([t]) for t in texts[::30]])
    torch.testing.assert_close(together[::30], alone, atol=5e-6, rtol=0)


NOT_TRIMMED = {
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "mobileclip": {"no_causal_mask": True},
    "last": {"pool_type": "last"},
}


@pytest.mark.parametrize("text", NOT_TRIMMED.values(), ids=NOT_TRIMMED.keys())
def test_towers_where_trimming_is_not_exact_run_at_full_length(tmp_path, tokenizer, text):
    folder = write_tiny_vit(tmp_path, custom_text=True, text=text)
    backbone = load_backbone(f"local:{folder}")
    lengths = []
    backbone.text.model.text.transformer.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        expected = open_clip_model(folder).encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=5e-6, rtol=0)
    assert lengths == [77]


def test_custom_text_tower_with_eos_pooling_is_trimmed(tmp_path, tokenizer):
    folder = write_tiny_vit(tmp_path, custom_text=True, text={"pool_type": "eos", "eos_id": 49407})
    backbone = load_backbone(f"local:{folder}")
    assert backbone.text.can_trim
    with torch.no_grad():
        expected = open_clip_model(folder).encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=5e-6, rtol=0)


def test_coca_style_text_tower_goes_through_the_model(tmp_path, tokenizer):
    folder = write_tiny_vit(tmp_path, custom_text=True, text={"embed_cls": True, "context_length": 76})
    backbone = load_backbone(f"local:{folder}")
    with torch.no_grad():
        expected = open_clip_model(folder).encode_text(tokenizer(TEXTS, context_length=76), normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=5e-6, rtol=0)
    with pytest.raises(NotAvailableError, match="learned text context"):
        backbone.embed_tokens(backbone.tokenize(["cat"]))


SPECIAL = [
    "a <end_of_text> bird",
    "<start_of_text>",
    "<END_OF_TEXT>x",
    "a &lt;end_of_text&gt; bird",
    "&amp;amp;amp;lt;end_of_text&gt; bird",
    "!<end_of_text>!",
]


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_in_a_text_are_plain_characters(backbone, tokenizer, text):
    ids = backbone.tokenize([text])[0]
    length = backbone.count_tokens([text])[0]
    assert (ids == tokenizer.eot_token_id).nonzero().tolist() == [[length - 1]]
    assert (ids == tokenizer.sot_token_id).nonzero().tolist() == [[0]]
    words = [tokenizer.decoder[int(i)].removesuffix("</w>") for i in ids[1 : length - 1]]
    assert "_of_text" in "".join(words)


def test_text_after_a_special_token_still_counts(backbone):
    features = backbone.encode_text(["a <end_of_text> bird", "a <end_of_text> plane"])
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_ordinary_texts_are_tokenised_as_by_open_clip(backbone, tokenizer):
    texts = [*TEXTS, "Fish & chips &amp; peas, 3 < 4 > 2", "naïve café – ½", "<b>bold</b>"]
    assert torch.equal(backbone.tokenize(texts), tokenizer(texts))


def test_count_is_before_truncation(backbone):
    assert backbone.count_tokens(["cat", "", "word " * 100]) == [3, 2, 102]
    assert backbone.tokenize(["word " * 100]).shape == (1, 77)


def test_differentiable_text_equals_encode_text_and_carries_gradient(backbone):
    tokens = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(tokens).detach().requires_grad_()
    features = backbone.encode_token_embeddings(embeddings, tokens)
    torch.testing.assert_close(features, backbone.encode_text(TEXTS), atol=5e-6, rtol=0)
    (features @ torch.randn(48)).sum().backward()
    lengths = torch.tensor(backbone.count_tokens(TEXTS)).clamp(max=77)
    reached = embeddings.grad.abs().sum(dim=-1) > 0
    assert torch.equal(reached, torch.arange(77) < lengths[:, None])


def test_hugging_face_tokenizer_in_a_local_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "cat", "dog", "[", "]", "SEP", "CLS"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(tmp_path)
    folder = write_tiny_vit(
        tmp_path, custom_text=True, text={"hf_tokenizer_name": "any", "context_length": 8, "vocab_size": 16, "pool_type": "first"}
    )
    backbone = load_backbone(f"local:{folder}")
    assert backbone.context_length == 8
    assert backbone.tokenize(["cat dog", "cat [SEP] dog"]).tolist() == [[1, 4, 5, 2, 0, 0, 0, 0], [1, 4, 6, 8, 7, 5, 2, 0]]
    assert backbone.count_tokens(["cat dog", "cat " * 20]) == [4, 22]
    assert backbone.encode_text(["cat dog"]).shape == (1, 48)
