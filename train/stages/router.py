"""Stage router: routers that set lambda for every token.

The corpus kind chooses the tokens, none from a test. The loss is the mix's nll, so a router learns
when to trust each source; or, where the kind tells what the memory was taught, a gate's
cross-entropy. R positions, F features.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.distributions import weigh
from mlpmem.engine.router import FEATURES, Router, RouterConfig, features, reach
from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import PARTS
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import BulkRetriever
from train.config.tables import RouterFitConfig
from train.measure.by_token import gold, source_batches
from train.run.kinds import RouterData, kind_of
from train.run.stage import StageContext

SYSTEMS = tuple(system for system, parts in PARTS.items() if parts)  # those that mix
STEPS = 150  # of L-BFGS, at most
# of AdamW, where a router reads the state
NOISY_STEPS, NOISY_ROWS, RATE, DECAY = 2000, 2048, 1e-3, 0.1


@dataclass(frozen=True)
class RouterRows:
    """The data of one system's router."""

    features: Tensor  # (R, F)
    lm: Tensor  # (R,) the decoder's log-prob of the true token
    other: Tensor  # (R,) the system's
    taught: Tensor | None = None  # (R,) as in RouterData

    def at(self, index: Tensor) -> "RouterRows":
        """Return the rows at an index."""
        taught = None if self.taught is None else self.taught[index]
        return RouterRows(self.features[index], self.lm[index], self.other[index], taught)


def fit_routers(context: StageContext) -> dict:
    """Return counts; writes one folder per system: router/memory, router/knn, router/mixed."""
    config, inputs = context.config, context.inputs
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    settings = Settings(k=config.k, knn_temperature=config.temperature)
    model = Model(decoder, memory, settings)
    store = Datastore.load(inputs["datastore"])
    model.attach_datastore(store, BulkRetriever(store.keys, decoder.device))
    corpus = inputs["corpus"]
    data = kind_of(corpus).router_data(corpus, decoder, config, context.seed)
    nll = {}
    for system, rows in router_rows(model, data, config.state, config.evidence).items():
        rows = replace(rows, taught=data.taught)
        router, nll[system] = fit(model, system, rows, data.weights, config, context.seed)
        router.save(context.folder / system)
    return {"tokens": len(data.positions), "nll": nll}


def router_rows(
    model: Model, data: RouterData, state: bool = False, evidence: bool = True
) -> dict[str, RouterRows]:
    """Return {system: rows} of every mixing system that the model supports.

    With state, the hidden states with any context vectors follow the features. Without evidence it
    is 0, and nothing before the positions is scored.
    """
    systems = [system for system in SYSTEMS if model.can_ask(system, model.store)]
    positions, selected = data.positions, np.ones(len(data.positions), bool)
    if evidence:
        positions, selected = reach(data.documents, positions)
    count, width = len(positions), len(FEATURES) + state * model.decoder.state_size
    rows_of = {
        s: RouterRows(torch.zeros(count, width), torch.zeros(count), torch.zeros(count))
        for s in systems
    }
    for at, sources, true, before in source_batches(model, data.documents, positions, systems):
        for system, rows in rows_of.items():
            pair = sources["lm"], sources[system]
            read = features(*pair, before[system] * evidence, sources.nearest(system))
            if state:
                read = torch.cat([read, sources.hidden.to(read)], 1)
            rows.features[at] = read.cpu()
            rows.lm[at] = gold(sources, "lm", true).cpu()
            rows.other[at] = gold(sources, system, true).cpu()
    at = torch.from_numpy(selected)
    return {s: r.at(at) for s, r in rows_of.items()}


def fit(
    model: Model,
    system: str,
    rows: RouterRows,
    weights: Tensor,
    config: RouterFitConfig,
    seed: int,
) -> tuple[Router, float]:
    """Return the router of a system and its weighted nll in nats, over all rows.

    The fitting data are wordings that both sources know well; elsewhere the router would be
    overconfident. So its logit is multiplied by `trust`.
    """
    torch.manual_seed(seed)
    decoder, state = model.decoder, rows.features.shape[1] - len(FEATURES)
    shape = system, decoder.vocab_size, decoder.tokenizer_hash, config.units, state
    router = Router(RouterConfig(*shape, evidence=config.evidence))
    router.mean.copy_(rows.features.mean(0))
    router.scale.copy_(rows.features.std(0).clamp_min(1e-3))
    if state:
        _descend(router, rows, weights, config)
    else:
        _minimise(router, rows, weights, config)
    with torch.no_grad():
        for weight in router.out.parameters():
            weight.mul_(config.trust)
        return router, float(nll(router(rows.features), rows, weights))


def _minimise(router: Router, rows: RouterRows, weights: Tensor, config: RouterFitConfig) -> None:
    """Fit a router in place by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        router.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        size = sum(p.square().sum() for p in router.parameters())
        value = objective(router(rows.features), rows, weights) + config.decay * size
        value.backward()
        return value

    optimizer.step(closure)


def _descend(router: Router, rows: RouterRows, weights: Tensor, config: RouterFitConfig) -> None:
    """Fit a router that reads the state in place by AdamW, with noise on what it reads.

    A state has more numbers than there are rows, so L-BFGS would learn the rows by heart. Each step
    draws rows by their weights.
    """
    optimizer = torch.optim.AdamW(router.parameters(), RATE, weight_decay=DECAY)
    equal = torch.full((NOISY_ROWS,), 1 / NOISY_ROWS)
    for _ in range(NOISY_STEPS):
        at = torch.multinomial(weights, NOISY_ROWS, replacement=True)
        drawn = rows.at(at)
        noise = config.noise * router.scale * torch.randn_like(drawn.features)
        optimizer.zero_grad()
        objective(router(drawn.features + noise), drawn, equal).backward()
        optimizer.step()


def objective(logits: Tensor, rows: RouterRows, weights: Tensor) -> Tensor:
    """Return what a router is fitted to lower: the mix's nll, or a gate's cross-entropy.

    Where rows say what the memory was taught, lambda is the probability that a row is of that. The
    nll alone hardly shuts a router: where both sources agree it costs nothing to leave it open, and
    then it is open where they do not.
    """
    if rows.taught is None:
        return nll(logits, rows, weights)
    return F.binary_cross_entropy_with_logits(logits, rows.taught, weights, reduction="sum")


def nll(logits: Tensor, rows: RouterRows, weights: Tensor) -> Tensor:
    """Return the weighted nll in nats of the mix at lambda = sigmoid(logits), (R,) each.

    Value and gradient are finite even if a source gives the true token no probability.
    """
    lm, other = rows.lm.clamp_min(-60.0), rows.other.clamp_min(-60.0)
    mixed = weigh(lm, other, F.logsigmoid(-logits), F.logsigmoid(logits))
    return -(weights * mixed).sum()
