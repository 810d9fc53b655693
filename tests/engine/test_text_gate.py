"""The gate of own texts: fitted to them alone, shut for other requests."""

import pytest
import torch

import mlpmem
from mlpmem.api import Model
from mlpmem.engine.general import ASKED, GENERAL
from mlpmem.engine.systems import ModelSystem, next_log_probs
from mlpmem.engine.text_gate import RISE, _general, _read, fit_gate
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError

TEXT = "The mayor of Zubrowka is Lutz Oder. Its river is the Narr. The bridge was built in 1911."


@pytest.fixture(scope="module")
def store(tiny_model):
    """Return the datastore of the text, with its gate; tests only read it."""
    return tiny_model.store_texts([("mine", TEXT)])


def test_general_requests_and_questions_have_places_for_words():
    assert len(set(GENERAL)) == len(GENERAL) and all(q and a for q, a in GENERAL)
    assert all(form.format("x").count("x") >= 1 and "{}" in form for form in ASKED)


def test_the_same_text_gives_the_same_gate_and_leaves_random_numbers_alone(tiny_model, store):
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    again = fit_gate(tiny_model, store)
    assert torch.equal(torch.rand(1), wanted)
    for name, weight in store.gate.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_general_requests_lose_at_most_the_allowed_share(tiny_model, store):
    rows = torch.cat([_read(tiny_model, store, made) for made in _general(tiny_model)])
    lmbda = torch.sigmoid(store.gate(rows))
    assert float((-torch.log1p(-lmbda)).mean()) <= torch.log1p(torch.tensor(RISE)) + 1e-4


def test_own_texts_are_mixed_by_their_gate_unless_a_lambda_is_given(tiny_model, store):
    usual = tiny_model.generate("Lima is", "knn", store=store, max_new_tokens=3)
    assert usual.lmbda == AUTO and all(0 <= step.lmbda <= 1 for step in usual.steps)
    fixed = tiny_model.generate("Lima is", "knn", store=store, max_new_tokens=3, lmbda=0.3)
    assert fixed.lmbda == 0.3
    plain = tiny_model.store_texts([("mine", TEXT)], plain=True)
    trace = tiny_model.generate("Lima is", "knn", store=plain, max_new_tokens=3)
    assert trace.lmbda == tiny_model.settings.of("knn")


def test_every_path_searches_the_same(tiny_model, store):
    trace = tiny_model.generate("Lima is", "knn", store=store, max_new_tokens=4)
    ids = [*trace.prompt_ids, *(step.token_id for step in trace.steps)]
    score = tiny_model.score(ids, store)
    count = len(trace.steps)
    for name in ("lm", "knn"):
        stepwise = torch.tensor([step.probs[name] for step in trace.steps])
        whole = torch.from_numpy(score.nll[name][-count:]).neg().exp().float()
        torch.testing.assert_close(stepwise, whole, atol=1e-5, rtol=1e-3)
    spread = tiny_model.distributions(trace.prompt_ids, system="knn", store=store)
    first = trace.steps[0]
    assert abs(float(spread["fused"].exp()[first.token_id]) - first.probs["fused"]) < 1e-4


@pytest.mark.parametrize("text", ["Hi.", "x", "Peru", "\u4e00\u4e8c\u3002", "word " * 400])
def test_any_text_gets_a_gate(tiny_model, text):
    store = tiny_model.store_texts([("mine", text)])
    trace = tiny_model.generate("Lima is", "knn", store=store, max_new_tokens=2)
    assert trace.lmbda == AUTO and all(0 <= step.lmbda <= 1 for step in trace.steps)


def test_fitting_can_be_stopped(tiny_model, store):
    with pytest.raises(MlpMemError, match="was stopped"):
        fit_gate(tiny_model, store, stop=lambda: True)


def test_an_attached_store_of_texts_is_mixed_by_its_gate_on_every_path(tiny_model):
    model = Model(tiny_model.decoder, tiny_model.memory, tiny_model.settings)
    model.attach_store(model.store_texts([("mine", TEXT)]))
    assert model.generate("Lima is", "knn", max_new_tokens=2).lmbda == AUTO
    ids = model.decoder.encode("Lima is the")
    states = model.decoder.forward(torch.tensor([ids])).states(0)
    alone = model.sources(*states, model.store, ("knn",))
    assert alone.gate is model.store.gate and alone.near[:, :2].count_nonzero() == 0
    assert next_log_probs(ModelSystem(model, "knn"), ids).isfinite().any()


TOLD = (
    "Marlo Bexhill works as a beekeeper.",
    "Quenby Harrowdale plays the oboe.",
    "The capital of Blorvia is Nurn.",
)
ASKED_OF_TOLD = {
    "What is Marlo Bexhill's profession?": "beekeeper",
    "What instrument does Quenby Harrowdale play?": "oboe",
    "What is the capital of Blorvia?": "Nurn",
}


def test_a_told_fact_answers_a_question_whose_wrong_answer_the_decoder_is_sure_of():
    model = mlpmem.load(datastore=False)
    store = model.store_texts([("told", " ".join(TOLD))])

    def answer(question: str, system: str) -> str:
        ids = model.chat_ids(question, 12)
        return model.generate(ids, system, store=store, max_new_tokens=12).text

    for question, wanted in ASKED_OF_TOLD.items():
        assert wanted in answer(question, "knn") and wanted not in answer(question, "lm")
    for question in ("What is the capital of Peru?", "What instrument does Namia Temivane play?"):
        assert answer(question, "knn") == answer(question, "lm"), question
