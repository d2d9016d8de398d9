"""The text encoder against transformers' BERT with the same weights."""

import pytest
import torch
from tiny_albef import randomise, tiny_albef, tiny_batch
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer, BertOnlyMLMHead

from pela_vl.models.albef.attention import select_images
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.albef.heads import MaskedLanguageHead

DIM, DEPTH, HEADS, MLP, FUSION, IMAGE_DIM, VOCAB = 24, 4, 2, 48, 2, 20, 50
# Two times the fp32 rounding of a different order of summation
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def config(**more):
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=40,
        hidden_act="gelu",
        attn_implementation="eager",
        **more,
    )


def encoder(fusion_layer=FUSION, **more) -> TextEncoder:
    torch.manual_seed(0)
    made = TextEncoder(
        VOCAB, DIM, DEPTH, HEADS, MLP, fusion_layer, IMAGE_DIM, max_positions=40, dropout=0, attention_dropout=0, **more
    )
    return randomise(made)


def image_tokens(batch=4, count=5):
    return torch.randn(batch, count, IMAGE_DIM, generator=torch.Generator().manual_seed(1))


def additive(mask):
    return torch.where(mask.bool(), 0.0, torch.finfo(torch.float32).min)[:, None, None, :]


def test_text_only_layers_are_berts():
    ours = encoder(fusion_layer=DEPTH)
    theirs = BertModel(config(), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same too
    batch = tiny_batch()
    expected = theirs(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    states = ours.encode(batch.ids, batch.mask, keep_hidden=True)
    real = batch.mask.bool()
    assert len(states.hidden) == DEPTH + 1
    for own, other in zip(states.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(own[real], other[real], **CLOSE)
    torch.testing.assert_close(states.tokens[real], expected.last_hidden_state[real], **CLOSE)


@pytest.mark.parametrize("image_mask", [None, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]])
def test_fusion_layers_are_berts_with_cross_attention(image_mask):
    ours = encoder()
    batch, image = tiny_batch(), image_tokens()
    image_mask = None if image_mask is None else torch.tensor(image_mask)
    x = torch.randn(4, 9, DIM, generator=torch.Generator().manual_seed(2))
    states = ours.fuse(x, batch.mask, ours.image_keys_values(image), image_mask, keep_hidden=True)
    theirs = config(is_decoder=True, add_cross_attention=True)
    real = batch.mask.bool()
    for i, layer in enumerate(ours.encoder.layer[FUSION:]):
        reference = BertLayer(theirs).eval()
        for name in ("key", "value"):  # BERT knows one width only, so the product over image tokens is replaced
            setattr(reference.crossattention.self, name, torch.nn.Linear(IMAGE_DIM, DIM))
        reference.load_state_dict(layer.state_dict())
        x = reference(
            x,
            attention_mask=additive(batch.mask),
            encoder_hidden_states=image,
            encoder_attention_mask=None if image_mask is None else additive(image_mask),
        )
        torch.testing.assert_close(states.hidden[i + 1][real], x[real], **CLOSE)


def test_padding_does_not_influence_real_tokens():
    ours = encoder()
    batch, image = tiny_batch(length=9), ours.image_keys_values(image_tokens())
    long_ids = torch.nn.functional.pad(batch.ids, (0, 6), value=17)
    long_mask = torch.nn.functional.pad(batch.mask, (0, 6))

    def run(ids, mask):
        return ours.fuse(ours.encode(ids, mask).tokens, mask, image).tokens

    real = batch.mask.bool()
    torch.testing.assert_close(run(long_ids, long_mask)[:, :9][real], run(batch.ids, batch.mask)[real], **CLOSE)
    changed = torch.where(real, batch.ids, 23)
    torch.testing.assert_close(run(changed, batch.mask)[real], run(batch.ids, batch.mask)[real], **CLOSE)


def test_every_real_token_and_image_token_matters():
    ours = encoder()
    batch, image = tiny_batch(size=1), image_tokens(1)
    base = ours.fuse(ours.encode(batch.ids, batch.mask).tokens, batch.mask, ours.image_keys_values(image)).tokens
    for position in range(1, 9):
        ids = batch.ids.clone()
        ids[0, position] = 5 + (ids[0, position] - 4) % 40
        other = ours.fuse(ours.encode(ids, batch.mask).tokens, batch.mask, ours.image_keys_values(image)).tokens
        assert (other[0, 0] - base[0, 0]).abs().max() > 1e-4
    for token in range(5):
        moved = image.clone()
        moved[0, token] += 1
        other = ours.fuse(ours.encode(batch.ids, batch.mask).tokens, batch.mask, ours.image_keys_values(moved)).tokens
        assert (other[0, 0] - base[0, 0]).abs().max() > 1e-5


def test_keys_and_values_of_one_image_serve_many_texts():
    ours = encoder()
    batch, image = tiny_batch(), image_tokens()
    tokens = ours.encode(batch.ids, batch.mask).tokens
    per_text = ours.fuse(tokens, batch.mask, ours.image_keys_values(image[2:3].expand(4, -1, -1))).tokens
    shared = ours.fuse(tokens, batch.mask, ours.image_keys_values(image[2:3])).tokens
    chosen = select_images(ours.image_keys_values(image), torch.tensor([2, 2, 2, 2]))
    torch.testing.assert_close(shared, per_text, **CLOSE)
    torch.testing.assert_close(ours.fuse(tokens, batch.mask, chosen).tokens, per_text, **CLOSE)


def test_selected_images_keep_their_order():
    ours = encoder()
    image = image_tokens()
    index = torch.tensor([3, 0, 3, 1])
    for chosen, direct in zip(
        select_images(ours.image_keys_values(image), index), ours.image_keys_values(image[index]), strict=True
    ):
        torch.testing.assert_close(chosen[0], direct[0], **CLOSE)
        torch.testing.assert_close(chosen[1], direct[1], **CLOSE)


def test_a_layer_with_cached_keys_continues_a_text():
    ours = encoder(fusion_layer=DEPTH)
    layer = ours.encoder.layer[0]
    x = torch.randn(2, 6, DIM)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    whole = layer(x, causal)
    first = layer.attention.projections.keys_values(x[:, :4])
    torch.testing.assert_close(layer(x[:, 4:], causal[:, :, 4:], past=first), whole[:, 4:], **CLOSE)
    torch.testing.assert_close(
        ours.embeddings(torch.full((1, 3), 7), first_position=2), ours.embeddings(torch.full((1, 5), 7))[:, 2:]
    )


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    ours = TextEncoder(VOCAB, DIM, DEPTH, HEADS, MLP, FUSION, IMAGE_DIM, max_positions=40)
    batch = tiny_batch()
    runs = [ours.train(mode).encode(batch.ids, batch.mask).tokens for mode in (True, True, False, False)]
    assert not torch.equal(runs[0], runs[1])
    assert torch.equal(runs[2], runs[3])


def test_masked_language_head_is_berts():
    torch.manual_seed(0)
    words = torch.randn(VOCAB, DIM)
    ours = randomise(MaskedLanguageHead(DIM, VOCAB))
    theirs = BertOnlyMLMHead(config()).eval()
    state = {f"predictions.{name}": value for name, value in ours.state_dict().items()}
    state |= {"predictions.decoder.weight": words, "predictions.decoder.bias": ours.bias.detach()}
    theirs.load_state_dict(state)
    x = torch.randn(7, DIM)
    torch.testing.assert_close(ours(x, words), theirs(x), **CLOSE)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("fusion_started", [False, True])
def test_the_first_token_alone_is_that_of_the_whole_pass(fusion_started, layers, shared):
    model = tiny_albef(text_depth=2 + layers, fusion_layer=2).eval()
    ours, batch = model.text_encoder, tiny_batch(5)
    image = ours.image_keys_values(model.visual_encoder(batch.images).tokens[: 1 if shared else 5])
    tokens = ours.encode(batch.ids, batch.mask).tokens
    whole = ours.fuse(tokens, batch.mask, image).tokens[:, 0]
    if fusion_started:
        tokens = ours.start_fusion(tokens, batch.mask)
    torch.testing.assert_close(ours.fuse_first(tokens, batch.mask, image, fusion_started), whole, **CLOSE)


def test_the_first_token_alone_has_the_gradients_of_the_whole_pass():
    gradients = []
    for checkpointing in (None, False, True):  # None: the whole pass
        model, batch = tiny_albef().train(), tiny_batch(4)
        model.set_activation_checkpointing(bool(checkpointing))
        ours = model.text_encoder
        image = ours.image_keys_values(model.visual_encoder(batch.images).tokens)
        tokens = ours.encode(batch.ids, batch.mask).tokens
        if checkpointing is None:
            first = ours.fuse(tokens, batch.mask, image).tokens[:, 0]
        else:
            first = ours.fuse_first(tokens, batch.mask, image)
        first.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-6)
