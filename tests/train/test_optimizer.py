"""Master weights change nothing in float32, keep small steps in bfloat16, and survive a restart."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from train.config.tables import OptimizerConfig
from train.fit.optimizer import MasterOptimizer, schedule

STEPS = 6


class Net(nn.Module):
    """One of every kind: an embedding, inner matrices, a norm, a bias, a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 12)
        self.outer = nn.Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, ids):
        return self.lm_head(self.norm(self.outer(self.inner(self.embed(ids)).relu())))


def net(dtype=torch.float32):
    torch.manual_seed(3)
    return Net().to(dtype)


def gradients(model, step):
    """Fill the gradients of one step's batch."""
    torch.manual_seed(100 + step)
    ids = torch.randint(11, (5,))
    F.cross_entropy(model(ids).float() * 4, ids.roll(1)).backward()


def train(model, optimizer, steps):
    return [_step(model, optimizer, step) for step in steps]


def _step(model, optimizer, step):
    """Take a step of one row, whose sum is its mean; return the gradient's norm."""
    gradients(model, step)
    optimizer.count(torch.tensor(1), [])
    return float(optimizer.step(step)[-1])


def plain(model, config, muon):
    """Train with torch's own optimizers and clipping."""
    matrices = [model.inner.weight, model.outer.weight]
    mine = [p for p in model.parameters() if not any(p is m for m in matrices) or not muon]
    groups = [
        {"params": [p for p in mine if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in mine if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers = [(torch.optim.AdamW(groups, betas=(0.9, 0.95)), config.lr)]
    if muon:
        decay = config.weight_decay
        optimizers.append((torch.optim.Muon(matrices, weight_decay=decay), config.muon_lr))
    norms = []
    for step in range(STEPS):
        gradients(model, step)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), config.clip)))
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, STEPS, config)
            optimizer.step()
            optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
@pytest.mark.parametrize("clip", [0.2, 100.0])
def test_float32_steps_are_those_of_torchs_own_optimizers(muon_lr, clip):
    config = OptimizerConfig(lr=0.03, muon_lr=muon_lr, weight_decay=0.2, warmup=0.4, clip=clip)
    ours, theirs = net(), net()
    norms = train(ours, MasterOptimizer(ours, config, STEPS), range(STEPS))
    assert norms == pytest.approx(plain(theirs, config, muon_lr > 0), rel=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
        assert not a.grad.any()


def test_weight_decay_does_not_change_norms_and_biases():
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = MasterOptimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5, warmup=0.0), STEPS)
    optimizer.step(0)
    for name, p in model.named_parameters():
        kept = 1.0 if p.dim() < 2 else 1 - 0.1 * 0.5
        torch.testing.assert_close(p, before[name] * kept)


def test_bfloat16_weights_accumulate_steps_below_their_rounding():
    model = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    config = OptimizerConfig(lr=2e-4, weight_decay=0.0, warmup=0.0, final=1.0)
    optimizer = MasterOptimizer(model, config, 40)
    for step in range(40):
        model.weight.grad.fill_(1.0)
        optimizer.step(step)
    # each step is a twentieth of bfloat16's spacing below 1
    torch.testing.assert_close(model.weight, torch.full_like(model.weight, 1 - 40 * 2e-4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_passes_add_to_one_float32_vector_for_weights_of_any_dtype(dtype):
    model = net(dtype)
    expected = net(torch.float32)
    expected.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    optimizer = MasterOptimizer(model, OptimizerConfig(), STEPS)
    for step in range(3):
        gradients(model, step)
        gradients(expected, step)
    vector = torch.cat([p.grad.flatten() for p in model.parameters()])
    reference = torch.cat([p.grad.flatten() for p in expected.parameters()])
    assert vector.dtype == torch.float32
    near = 1e-6 if dtype == torch.float32 else 0.02
    assert (vector - reference).norm() <= near * reference.norm()
    whole = model.embed.weight.grad.untyped_storage()
    assert all(p.grad.untyped_storage().data_ptr() == whole.data_ptr() for p in model.parameters())
    assert optimizer.step(0)[-1] > 0 and not model.inner.weight.grad.any()


def test_sums_are_divided_by_all_rows_once():
    one, many = net(), net()
    for model, rows in ((one, 1), (many, 5)):
        optimizer = MasterOptimizer(model, OptimizerConfig(lr=0.1, clip=0.5), STEPS)
        gradients(model, 0)
        for p in model.parameters():
            p.grad.mul_(rows)
        optimizer.count(torch.tensor(rows), [torch.tensor(2.0 * rows)])
        rows_counted, loss, *_, norm = optimizer.step(0).tolist()
        assert (rows_counted, loss) == (rows, 2.0 * rows)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert norm > 0 and not optimizer.counts.any()


def test_a_finished_optimizer_leaves_the_masters_and_no_gradient_in_the_model():
    model = net(torch.bfloat16)
    optimizer = MasterOptimizer(model, OptimizerConfig(lr=0.1), STEPS)
    train(model, optimizer, range(2))
    masters = {name: weight.clone() for name, weight in optimizer.weights().items()}
    rounded = [p.detach().float() for p in model.parameters()]
    optimizer.finish()
    for (name, p), before in zip(model.named_parameters(), rounded, strict=True):
        assert p.dtype == torch.float32 and p.grad is None
        assert torch.equal(p, masters[name]) and torch.equal(p.bfloat16().float(), before)
    assert model.half().inner.weight.dtype == torch.float16


def test_float32_weights_are_their_own_masters():
    model = net()
    optimizer = MasterOptimizer(model, OptimizerConfig(), STEPS)
    pairs = zip(model.parameters(), optimizer.masters, strict=True)
    assert all(p is master for p, master in pairs)


def test_frozen_parameters_are_not_touched():
    model = net()
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    train(model, MasterOptimizer(model, OptimizerConfig(lr=0.1), STEPS), range(2))
    assert torch.equal(model.embed.weight, before)


@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_exactly(muon_lr, dtype):
    config = OptimizerConfig(lr=0.03, muon_lr=muon_lr)
    whole = net(dtype)
    train(whole, MasterOptimizer(whole, config, STEPS), range(STEPS))
    first = net(dtype)
    optimizer = MasterOptimizer(first, config, STEPS)
    train(first, optimizer, range(3))
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    second = Net().to(dtype)  # other weights: everything must come from the state
    optimizer = MasterOptimizer(second, config, STEPS)
    optimizer.restore(state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    train(second, optimizer, range(3, STEPS))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True)
    )


def test_the_schedule_warms_up_is_never_zero_and_ends_at_its_final_factor():
    config = OptimizerConfig(warmup=0.1, final=0.05)
    shares = [schedule(i, 100, config) for i in range(101)]
    assert shares[0] == 0.1 and shares[9] == shares[10] == 1.0
    assert shares[100] == pytest.approx(0.05) and min(shares[:100]) > 0.05
    assert all(a < b for a, b in zip(shares[:9], shares[1:10], strict=True))
    assert all(a > b for a, b in zip(shares[10:100], shares[11:101], strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_schedule_of_a_very_short_run_is_usable(steps):
    config = OptimizerConfig(warmup=0.03)
    assert all(0 < schedule(i, steps, config) <= 1 for i in range(steps))
    assert schedule(0, steps, config) == 1.0


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bloom", "llama"])
def test_muon_optimizes_no_embedding_and_no_head_of_any_family(family):
    model = tiny.decoder(family).model.requires_grad_(True)
    optimizer = MasterOptimizer(model, OptimizerConfig(muon_lr=0.1), STEPS)
    taken = {id(p) for group in optimizer.optimizers[1].param_groups for p in group["params"]}
    names = [n for n, m in zip(optimizer.names, optimizer.masters, strict=True) if id(m) in taken]
    layers = {n for n, p in model.named_parameters() if p.dim() == 2 and ".1." in n}
    assert {name for name in names if ".1." in name} == layers
    assert all(any(f".{i}." in name for i in range(tiny.LAYERS)) for name in names)
