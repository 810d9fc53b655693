"""The chunked sparse loss equals dense torch, value and gradient, whatever the shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from train.fit import loss as module
from train.fit.loss import chunk_rows, head_loss, row_nll


def problem(rows=23, width=6, vocab=17, support=5, seed=0):
    """Return features, head, values, token_ids, probs; some rows do not count, all are padded."""
    torch.manual_seed(seed)
    features = torch.randn(rows, width)
    head = torch.randn(vocab, width)
    values = torch.randint(vocab, (rows,))
    values[::4] = -100
    values[1::7] = -1
    token_ids = torch.stack([torch.randperm(vocab)[:support] for _ in range(rows)])
    probs = torch.rand(rows, support).softmax(-1)
    probs[:, support - 2 :] = 0.0  # padding: token 0, which may be in the support as well
    token_ids[:, support - 2 :] = 0
    probs = probs / probs.sum(-1, keepdim=True)
    return features, head, values, token_ids, probs


def dense(features, head, values, token_ids, probs, alpha):
    """Return (loss, kl, ce), summed over rows, by dense (R, V) targets and torch's own losses."""
    real = values >= 0
    log_probs = F.log_softmax(features[real].float() @ head.float().T, -1)
    target = torch.zeros_like(log_probs).scatter_add_(1, token_ids[real], probs[real])
    kl = F.kl_div(log_probs, target, reduction="sum")
    logits = features[real].float() @ head.float().T
    ce = F.cross_entropy(logits, values[real], reduction="sum")
    return alpha * kl + (1 - alpha) * ce, kl, ce


def gradients(function, features, head, *rest):
    """Return the three losses and both gradients of twice the first."""
    features, head = features.clone().requires_grad_(), head.clone().requires_grad_()
    losses = function(features, head, *rest)
    (2 * losses[0]).backward()
    return [x.detach() for x in losses], features.grad, head.grad


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("chunk", [1, 7, 23, 1024])
def test_head_loss_equals_the_dense_losses_in_value_and_gradient(alpha, chunk, monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda vocab, device: chunk)
    arguments = problem()
    losses, d_features, d_head = gradients(head_loss, *arguments, alpha)
    expected, e_features, e_head = gradients(dense, *arguments, alpha)
    for ours, theirs in zip(losses, expected, strict=True):
        if alpha > 0 or theirs is not expected[1]:  # without alpha no kl is computed
            torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(d_features, e_features)
    torch.testing.assert_close(d_head, e_head)


@pytest.mark.parametrize(
    ("rows", "width", "vocab", "support"), [(2, 1, 2, 2), (5, 3, 300, 40), (64, 8, 9, 2)]
)
def test_head_loss_of_odd_shapes_equals_the_dense_losses(rows, width, vocab, support):
    torch.manual_seed(1)
    values = torch.randint(vocab, (rows,))
    token_ids = torch.stack([torch.randperm(vocab)[:support] for _ in range(rows)])
    probs = torch.rand(rows, support).softmax(-1)
    arguments = torch.randn(rows, width), torch.randn(vocab, width), values, token_ids, probs
    ours, theirs = gradients(head_loss, *arguments, 0.4), gradients(dense, *arguments, 0.4)
    for a, b in zip((*ours[0], *ours[1:]), (*theirs[0], *theirs[1:]), strict=True):
        torch.testing.assert_close(a, b)


def test_targets_with_missing_mass_have_the_dense_gradient():
    features, head, values, token_ids, probs = problem(seed=2)
    arguments = features, head, values, token_ids, probs * 0.97
    ours, theirs = gradients(head_loss, *arguments, 0.7), gradients(dense, *arguments, 0.7)
    torch.testing.assert_close(ours[0][0], theirs[0][0])
    torch.testing.assert_close(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2])


def test_rows_without_a_value_change_nothing_and_get_no_gradient():
    features, head, values, token_ids, probs = problem(seed=3)
    losses, d_features, _ = gradients(head_loss, features, head, values, token_ids, probs, 0.5)
    out = values < 0
    features[out] = 1000.0
    again, _, _ = gradients(head_loss, features, head, values, token_ids, probs, 0.5)
    assert torch.equal(torch.stack(losses), torch.stack(again))
    assert not d_features[out].any() and d_features[~out].any()


def test_without_alpha_it_is_plain_cross_entropy_and_needs_no_targets():
    features, head, values, *_ = problem()
    loss, kl, ce = head_loss(features, head, values)
    ignored = values.where(values >= 0, torch.tensor(-100))
    torch.testing.assert_close(loss, F.cross_entropy(features @ head.T, ignored, reduction="sum"))
    assert loss == ce and kl == 0


def test_alpha_without_targets_is_refused():
    features, head, values, token_ids, _ = problem()
    with pytest.raises(ValueError, match="alpha must be 0 without token_ids and probs; got 0.3"):
        head_loss(features, head, values, token_ids, None, 0.3)


def test_bfloat16_stays_near_the_float32_losses_of_the_same_numbers():
    features, head, *rest = problem(rows=200, width=32, vocab=60, support=12)
    half = features.bfloat16(), (head / 6).bfloat16()
    losses, *grads = gradients(head_loss, *half, *rest, 0.4)
    expected, *references = gradients(dense, half[0].float(), half[1].float(), *rest, 0.4)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=5e-3, atol=1e-3)
    for ours, theirs in zip(grads, references, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 3])
def test_micro_batches_add_to_the_heads_gradient_in_place(dtype, parts):
    features, head, *rest = problem(rows=120, width=16, vocab=40, support=9)
    features, head = features.to(dtype), (head / 4).to(dtype)
    _, d_features, d_head = gradients(dense, features.float(), head.float(), *rest, 0.4)
    features.requires_grad_()
    head.requires_grad_()
    head_grad = torch.full(head.shape, 3.0)  # of earlier micro-batches
    for micro in zip(*(x.chunk(parts) for x in (features, *rest)), strict=True):
        head_loss(micro[0], head, *micro[1:], 0.4, head_grad=head_grad)[0].backward()
    assert head.grad is None
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    expected = d_head / 2  # the reference doubles the loss
    torch.testing.assert_close(head_grad - 3.0, expected, **near)
    torch.testing.assert_close(features.grad.float(), d_features / 2, **near)


def test_a_frozen_head_gets_no_gradient_and_features_get_theirs():
    features, head, *rest = problem()
    _, expected, _ = gradients(dense, features, head, *rest, 0.4)
    features.requires_grad_()
    head_loss(features, head, *rest, 0.4)[0].backward()
    assert head.grad is None
    torch.testing.assert_close(features.grad, expected / 2)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_row_of_empty_targets_adds_no_kl_and_no_nan(alpha):
    features, head, values, token_ids, probs = problem()
    probs[values >= 0] = 0.0
    losses, d_features, _ = gradients(head_loss, features, head, values, token_ids, probs, alpha)
    assert losses[1] == 0 and d_features.isfinite().all()
    assert d_features.any() == (alpha < 1)


def test_nll_of_rows_is_that_of_the_dense_softmax(monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda vocab, device: 5)
    features, head, values, *_ = problem()
    values = values.clamp_min(0)
    expected = F.cross_entropy(features @ head.T, values, reduction="none")
    torch.testing.assert_close(row_nll(features, head, values), expected)


def test_a_chunk_is_never_empty_and_larger_on_a_gpu():
    assert chunk_rows(10**9, "cpu") == 1
    assert 64 <= chunk_rows(16384, "cpu") < chunk_rows(16384, "cuda")


def test_no_tensor_holds_all_rows_times_the_vocabulary(monkeypatch):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    monkeypatch.setattr(module, "chunk_rows", lambda vocab, device: 16)
    features, head, *rest = problem(rows=400, width=4, vocab=500)
    with Largest() as largest:
        gradients(head_loss, features, head, *rest, 0.4)
    assert largest.elements == 16 * 500
