"""The loss inside the head: the same numbers as outside, for any split of a batch, tied or not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from stages.objective.coverage import Coverage
from stages.objective.head import attach
from stages.objective.reference import objective_loss
from stages.objective.row_step import STATISTICS
from stages.objective.shaped import Shaped

VOCAB = 13


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation through Trainer would otherwise pay for two more matmuls, and for the weight's gradient in memory."""
    model = tiny_model()
    attach(model, Shaped(), head_k=3)
    ids, labels = batch()
    expected = model(ids, labels=labels).loss.item()
    monkeypatch.setattr("stages.objective.fused._add_product_", lambda *_, **__: pytest.fail("the weight's gradient was computed"))
    with torch.no_grad():
        assert model(ids, labels=labels).loss.item() == pytest.approx(expected, rel=1e-6)


def tiny_model(*, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=32, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def batch(rows: int = 4, time: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (rows, time), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -100)
    return ids, labels


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_those_computed_from_logits(tied: bool) -> None:
    prior = Shaped(beta=-0.25, lambda_tail=-0.1, k=3)
    ids, labels = batch()
    plain, shaped = tiny_model(tied=tied), tiny_model(tied=tied)
    attach(shaped, prior, head_k=3)
    logits = plain(input_ids=ids).logits
    expected = objective_loss(logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1), prior)
    found = shaped(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for (name, ours), theirs in zip(shaped.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        PhiConfig(),
        Gemma2Config(final_logit_softcapping=30.0),
        GraniteConfig(logits_scaling=8.0),
        CohereConfig(logit_scale=0.0625),
    ],
    ids=["output bias", "capped", "scaled", "multiplied"],
)
def test_a_model_whose_logits_are_more_than_a_product_is_refused_and_left_as_it_was(config: PreTrainedConfig) -> None:
    config.update({"num_hidden_layers": 1, "vocab_size": VOCAB, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0})
    config.update({"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8})
    model = AutoModelForCausalLM.from_config(config)
    ids, _ = batch()
    before = model(input_ids=ids).logits
    with pytest.raises(ValueError, match="a model with an output bias, or with scaled or capped logits"):
        attach(model, Shaped(), head_k=3)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_response_ends_with_its_row() -> None:
    """Also where the next row starts with one."""
    ids, labels = batch()[0], batch()[0]
    model = tiny_model()
    attach(model, Coverage(attempts=1e6), head_k=0)
    together = model(input_ids=ids, labels=labels, num_items_in_batch=1).loss
    alone = [model(input_ids=ids[[row]], labels=labels[[row]], num_items_in_batch=1).loss for row in range(len(ids))]
    torch.testing.assert_close(together, sum(alone, start=torch.zeros(())))


def test_activation_checkpointing_changes_no_gradient() -> None:
    ids, labels = batch()
    plain, checkpointed = tiny_model(), tiny_model()
    for model in (plain, checkpointed):
        attach(model, Shaped(beta=-0.25, lambda_tail=-0.1, k=3), head_k=3)
        model.train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(input_ids=ids, labels=labels).loss.backward()
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_tied_weight_stays_one_parameter() -> None:
    model = tiny_model(tied=True)
    count = len(list(model.parameters()))
    head = attach(model, Shaped(), head_k=3)
    assert head.weight is model.get_input_embeddings().weight
    assert len(list(model.parameters())) == count


def test_without_labels_the_head_gives_logits() -> None:
    model = tiny_model()
    head = attach(model, Shaped(beta=0.5), head_k=3)
    hidden = torch.randn(2, 3, 16)
    torch.testing.assert_close(head(hidden), F.linear(hidden, head.weight))


@settings(max_examples=20)
@given(st.permutations(range(8)), st.sampled_from([1, 2, 4, 8]))
def test_gradients_do_not_depend_on_how_a_batch_with_uneven_masks_is_split(order: list[int], parts: int) -> None:
    ids, labels = batch(rows=8)
    labels[0] = -100  # a whole sequence without targets
    count = (labels[:, 1:] != -100).sum()

    def gradients(pieces: list[list[int]]) -> list[torch.Tensor]:
        model = tiny_model()
        attach(model, Shaped(beta=-0.25), head_k=3)
        for piece in pieces:
            model(input_ids=ids[piece], labels=labels[piece], num_items_in_batch=count).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    whole = gradients([list(range(8))])
    split = gradients([order[start::parts] for start in range(parts)])
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_statistics_are_sums_over_counted_tokens_since_the_last_read() -> None:
    model = tiny_model()
    head = attach(model, Shaped(beta=0.5), head_k=3)
    ids, labels = batch()
    model.train()
    model(input_ids=ids[:2], labels=labels[:2])
    model(input_ids=ids[2:], labels=labels[2:])
    sums = head.take_statistics()
    assert sums is not None
    count, *totals = sums.tolist()
    logits = tiny_model()(input_ids=ids).logits[:, :-1]
    expected = F.cross_entropy(logits.reshape(-1, VOCAB), labels[:, 1:].reshape(-1), reduction="sum").item()
    assert count == (labels[:, 1:] != -100).sum()
    assert dict(zip(STATISTICS, totals, strict=True))["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert head.take_statistics() is None


def test_evaluation_mode_observes_nothing() -> None:
    model = tiny_model().eval()
    head = attach(model, Shaped(), head_k=3)
    model(input_ids=batch()[0], labels=batch()[1])
    assert head.take_statistics() is None
