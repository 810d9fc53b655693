"""The corpus kind "chat": its form, its cells, and a run from chats to a routed memory."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch

from mlpmem.engine.router import Router
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.context import Context, sentence_ends
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.model.prompts import chat_ids
from mlpmem.retrieval.documents import Documents, entries, join_passages
from train.config.corpus import ChatOptions, CorpusConfig
from train.config.studies import StudiesConfig
from train.config.tables import (
    DatastoreConfig,
    DecoderConfig,
    EvaluateConfig,
    ExportConfig,
    FinetunedConfig,
    MemoryFitConfig,
    Recipe,
    RouterFitConfig,
    TargetsConfig,
)
from train.corpora.atlas import chats as chat_facts
from train.corpora.atlas.wordings import AtlasConfig, build_atlas
from train.corpora.chat import ChatForm, question_start
from train.fit import context_rows
from train.fit.context_rows import ContextReader, ContextRows, token_weights, with_rivals
from train.fit.kept_rows import KeptRows
from train.fit.loss import head_loss
from train.kinds.kept import SORTS
from train.run.kinds import kind_of
from train.run.needs import needs
from train.run.pipeline import STAGES, run
from train.stages import router as router_stage
from train.stages.memory import TargetRows
from train.studies import chats
from train.studies.run import Run
from train.studies.training import tuned_chats

TEMPLATE = (
    "{{ 'Be kind.' + eos_token }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + "
    "eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
LIVES = (4.0, 16.0)


def chatty(folder=None):
    """Return a tiny decoder with a chat template, saved into folder if given."""
    decoder = tiny.decoder(max_position_embeddings=1024)
    decoder.tokenizer.chat_template = TEMPLATE
    if folder is not None:
        decoder.model.save_pretrained(folder)
        decoder.tokenizer.save_pretrained(folder)
    return decoder


def test_the_form_gives_the_ids_of_the_template():
    decoder = chatty()
    form = ChatForm.of(decoder.tokenizer)
    turns = [("Who?", "Ann"), ("Where\n there?", "Lima")]
    ((ids, head),) = form.encode(decoder.tokenizer, [turns])
    prompt = chat_ids(decoder, [("Who?", "Ann"), ("Where\n there?", None)])
    assert ids[:head] == prompt
    assert ids[head:] == [*decoder.encode("Lima")[1:], decoder.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "must have a chat template"),
        ("{{ messages[-1]['content'] }}", "must show every turn"),
        ("{% for m in messages %}{{ m['content'] + ' | ' }}{% endfor %}", "control token"),
    ],
)
def test_a_template_that_cannot_be_taught_is_refused(template, message):
    decoder = chatty()
    decoder.tokenizer.chat_template = template
    with pytest.raises(MlpMemError, match=message):
        ChatForm.of(decoder.tokenizer)


def test_prompts_are_no_entries_and_survive_a_save(tmp_path):
    documents = join_passages([(0, [5, 6, 7, 8]), (0, [5, 6, 7, 8, 9])], ["a"], ["b"], [2, 4])
    positions, counts = entries(documents)
    assert positions.tolist() == [2, 3, 8] and counts.tolist() == [2, 2, 1]
    documents.save(tmp_path)
    assert Documents.load(tmp_path).prompts.tolist() == [2, 4]
    for prompts in ([0, 4], [2, 6], [2]):
        with pytest.raises(MlpMemError, match="prompts"):
            join_passages([(0, [5, 6]), (0, [5, 6, 7])], ["a"], ["b"], prompts)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_rows_read_the_context_that_the_decoder_gives(size):
    decoder, documents = chatty(), tiny.documents()
    weights = token_weights("tell", decoder, documents)
    middle = len(documents.passage(1)) // 2  # questions begin inside of passages, too
    turn = tuple(documents.passage(1)[middle : middle + size].tolist())
    decoder.context = Context(LIVES, weights, turn, sentence_ends(decoder.pieces))
    positions, _ = entries(documents)
    positions = np.random.default_rng(0).permutation(positions)
    read = ContextReader(decoder, decoder.context).vectors(documents, positions)
    for position, row in zip(positions[:20], read, strict=False):
        passage = documents.passage_at(np.array([position]))[0]
        ids = documents.tokens[documents.offsets[passage] : position].astype(np.int64)
        hidden = decoder.forward(torch.from_numpy(ids)[None]).hidden[0, -1]
        assert torch.equal(hidden[decoder.hidden_size :], row)


def test_rows_of_training_hold_their_context_where_it_fits(monkeypatch):
    decoder, documents = chatty(), tiny.documents()
    decoder.context = Context(LIVES, token_weights("words", decoder, documents))
    positions, _ = entries(documents)
    rows = np.random.default_rng(0).integers(len(positions), size=40)
    reader = ContextReader(decoder, decoder.context)
    expected = reader.vectors(documents, positions[rows])
    monkeypatch.setattr(context_rows, "HELD_AT_ONCE", 7)
    held = ContextRows(reader, documents, positions)
    assert torch.equal(held.at(rows), expected.half().float())
    monkeypatch.setattr(context_rows, "HELD_BYTES", held.held.nbytes - 1)
    again = ContextRows(reader, documents, positions)
    assert again.held is None and torch.equal(again.at(rows), expected)


def test_tokens_weigh_as_much_as_they_tell_documents_apart():
    decoder, rest = chatty(), context_rows.PRIOR * context_rows.UNSEEN
    passages = [(0, [0, 5, 6]), (1, [0, 5, 7]), (1, [0, 7, 7]), (2, [0, 5, 7])]
    documents = join_passages(passages, ["a", "b", "c"], ["x", "x", "x"])
    weights = token_weights("tell", decoder, documents)

    def weight(*places):
        shares = np.array(places) / sum(places)
        told = 1 + float((shares * np.log(shares)).sum()) / np.log(3)
        return pytest.approx((sum(places) * told + rest) / (sum(places) + context_rows.PRIOR))

    assert weights[0] == 0, "a control token"
    assert weights[5] == weight(1, 1, 1) and weights[6] == weight(1) and weights[7] == weight(3, 1)
    assert weights[9] == pytest.approx(context_rows.UNSEEN), "no document has it"
    assert weights[6] > weights[9] > weights[5]
    alone = join_passages(passages[:1], ["a"], ["x"])
    assert set(token_weights("tell", decoder, alone)[5:8].tolist()) == {1.0}


def test_a_rival_is_in_the_words_so_far_and_not_in_what_was_asked():
    ends = torch.zeros(8)
    own, others = torch.arange(18.0).view(2, 9), torch.full((2, 9), 100.0)
    own[1, 6:] = own[1, 3:6]  # nothing was asked: it is the mean of the longest half-life
    context, shares = Context((4.0, 16.0), torch.ones(8), (1,), ends), torch.tensor([0.25, 0.5])
    mixed = with_rivals(own, others, shares, context)
    assert torch.equal(mixed[0, :6], 0.75 * own[0, :6] + 25)
    assert torch.equal(mixed[0, 6:], own[0, 6:])
    assert torch.equal(mixed[1], 0.5 * own[1] + 50)
    without = Context((4.0, 16.0, 64.0), torch.ones(8))
    assert torch.equal(with_rivals(own, others, shares, without)[0], 0.75 * own[0] + 25)


def test_alpha_by_row_is_a_sum_of_both_losses():
    torch.manual_seed(0)
    features, head = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    values, ids = torch.tensor([1, 2, -1, 4, 0]), torch.randint(0, 11, (5, 3))
    probs = torch.rand(5, 3).softmax(-1)
    alpha = torch.tensor([0.0, 1.0, 0.3, 0.3, 1.0])
    value, *_ = head_loss(features, head, values, ids, probs, alpha)
    (grad,) = torch.autograd.grad(value, features)
    total = 0.0
    for i, a in enumerate(alpha.tolist()):
        row = slice(i, i + 1)
        total += head_loss(features[row], head, values[row], ids[row], probs[row], a)[0]
    (expected,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(value, total)
    torch.testing.assert_close(grad, expected)


MARKED = "{%% for m in messages %%}%s{{ m['content'] }}<|end|>{%% endfor %%}<|a|>"


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        (MARKED % "{{ '<|u|>' if m['role'] == 'user' else '<|a|>' }}", ["<|u|>"]),
        (MARKED.replace("<|a|>", "<|u|>x") % "<|u|>{{ 'y' if m['role'] == 'user' else 'x' }}",
         ["<|u|>", "y"]),
    ],
)  # fmt: skip
def test_a_question_begins_with_a_token_that_no_answer_begins_with(template, begin):
    tokenizer = chatty().tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|u|>", "<|a|>", "<|end|>"]})
    tokenizer.chat_template = template
    assert tokenizer.convert_ids_to_tokens(question_start(tokenizer)) == begin


def test_a_template_without_a_question_mark_is_refused():
    tokenizer = chatty().tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(MlpMemError, match='use "text"'):
        question_start(tokenizer)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a small run and its recipe."""
    root = tmp_path_factory.mktemp("chat")
    chatty(root / "decoder")
    (root / "plain.txt").write_text("The sea is wide and the river is long. " * 40)
    recipe = Recipe(
        "chatty",
        seed=1,
        corpus=CorpusConfig(
            kind="chat",
            scale=0.001,
            passage=32,
            train=(str(root / "plain.txt"),),
            tokenizer=str(root / "decoder"),
            chat=ChatOptions(2, 1, 20, general=8, naming=8, follow=8, held_out=4, answer_tokens=4,
                             plain_tokens=64),
        ),
        decoder=DecoderConfig(source=str(root / "decoder"), epochs=0),
        datastore=DatastoreConfig(),
        targets=TargetsConfig(k=4, easy_share=1.0),
        memory=MemoryFitConfig(
            blocks=1, intermediate_size=16, head="tied", start="identity", context=LIVES,
            token_weights="tell", words_of="question", asked=True, rivals=0.5, epochs=2, batch=64,
            alpha=0.2, kept=16, processes=1, dtype="float32", validation_rows=16,
        ),
        router=RouterFitConfig(units=4, state=True, k=4, questions=6),
        finetuned=FinetunedConfig(settings=(), lora=()),
        evaluate=EvaluateConfig(questions=4, k=4),
        export=ExportConfig(name="chatty", examples=2, traces=1, questions=4),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(router_stage, "NOISY_STEPS", 200)  # nothing here asks how well it fits
        for stage in STAGES:
            run(stage, recipe, root / "run")
    return root / "run", recipe


def test_a_corpus_has_every_cell_and_what_must_be_kept(finished):
    folder, recipe = finished
    lines = (folder / "corpus" / "questions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    wordings = {row["wording"] for row in rows}
    assert {"seen", "dev", "test", "unseen", "second", "third", *chat_facts.TEST_RIVALS} <= wordings
    assert {row["group"] for row in rows} == {"real", "invented"}
    for split, count in (("train", 8), ("dev", 4), ("test", 4)):
        kept = Documents.load(folder / "corpus" / "kept" / split)
        groups = [kept.groups[d] for d in kept.document_of]
        assert {groups.count(sort) for sort in SORTS} == {count}
        assert groups.count("plain") >= 1
    learned = Documents.load(folder / "corpus" / "memory")
    texts = {tuple(learned.passage(p)) for p in range(len(learned))}
    held_out = [tuple(row["ids"]) for row in rows if row["wording"] in ("dev", "test", "unseen")]
    assert not texts & set(held_out)


def test_two_names_are_asked_in_both_orders_and_in_no_training_form():
    facts = chat_facts.Facts(build_atlas(AtlasConfig(seed=1, scale=0.05)), 20)
    rows = {"two": [], "two_last": []}
    for row in chat_facts.test_chats(facts, 1):
        rows.get(row["wording"], []).append(row)
    for asked_last, last in zip(rows["two"], rows["two_last"], strict=True):
        before, after = (row["turns"][-1][0] for row in (asked_last, last))
        assert asked_last["entity"] == last["entity"] and asked_last["answer"] == last["answer"]
        assert after.startswith(before.partition(". ")[2]), "one question, the other name moved"
    forms = [form.format(other="X", question="Y") for form in chat_facts.RIVALS]
    tests = chat_facts.TEST_RIVALS.values()
    assert not {form.format(other="X", question="Y") for form in tests} & {*forms}


def test_held_out_follow_ups_have_forms_of_their_own():
    facts = chat_facts.Facts(build_atlas(AtlasConfig(seed=1, scale=0.02)))
    found = chat_facts.follow_ups(facts, 60, 20, 1)
    assert found == chat_facts.follow_ups(facts, 60, 20, 1) and len(found) == 60
    apart, rest = ({turns[-1][0] for turns in some} for some in (found[:20], found[20:]))
    assert apart and rest and not apart & rest
    names = {facts.entity(fact).name for fact in facts.all}
    for (question, answer), (follows, empty) in found:
        assert question and answer and not empty
        assert not any(name in follows for name in names)


def test_the_decoders_own_answers_are_greedy(finished):
    folder, _ = finished
    kept = Documents.load(folder / "corpus" / "kept" / "test")
    decoder = chatty()
    passage = kept.passage(0).astype(np.int64)
    logits = decoder.forward(torch.from_numpy(passage)[None]).logits[0]
    answer = slice(int(kept.prompts[0]), None)
    assert logits.argmax(-1)[int(kept.prompts[0]) - 1 : -1].tolist() == passage[answer].tolist()


def test_kept_rows_are_the_decoders_distributions(finished):
    folder, _ = finished
    rows = KeptRows.of(folder / "datastore", None).draw(6, seed=3)
    again = KeptRows.of(folder / "datastore", None).draw(6, seed=3)
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    torch.testing.assert_close(rows["probs"].sum(1), torch.ones(6), atol=2e-3, rtol=0)
    logits = chatty().model.get_output_embeddings()
    assert rows["token_ids"].max() < logits.weight.shape[0]


def test_the_memory_reads_context_and_its_router_the_state(finished):
    folder, recipe = finished
    memory = Memory.load(folder / "memory")
    assert memory.config.context == LIVES and memory.config.tied_head
    router = Router.load(folder / "router" / "memory")
    assert router.config.state_size == memory.config.input_size
    history = json.loads((folder / "memory" / "history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_context_needs_a_start_that_reads_it():
    with pytest.raises(MlpMemError, match="start must be"):
        MemoryFitConfig(context=LIVES)
    with pytest.raises(MlpMemError, match="half-lives"):
        dataclasses.replace(MemoryFitConfig(start="free"), context=(0.0,))


@pytest.mark.slow
def test_the_study_asks_every_cell_and_counts_what_stayed(finished, monkeypatch):
    folder, recipe = finished
    monkeypatch.setattr(chats, "TOKENS", 3)
    recipe = dataclasses.replace(recipe, studies=StudiesConfig(questions=2))
    found = list(chats.chats(Run(recipe, folder, "chats")))
    systems = {finding.system for finding in found}
    retrieved = {"rag_1", "rag_3", "rag_5", "auto_rag_1"}
    assert systems == {"lm", "memory_0.7", "memory_1", "auto"} | retrieved
    assert {f.metric for f in found} == {"contained", "exact", "unchanged", "perplexity"}
    assert {f.split for f in found if f.metric == "unchanged"} == {*SORTS}
    assert {f.split for f in found if f.metric == "perplexity"} == {*SORTS, "plain"}
    cells = {f.split for f in found if f.metric == "contained"}
    assert {"real/test", "invented/unseen", "real/second"} <= cells


def test_a_tuned_decoder_has_the_memorys_compute_and_the_same_cells(finished, monkeypatch, capsys):
    folder, recipe = finished
    monkeypatch.setattr(chats, "TOKENS", 3)
    sizes = StudiesConfig(questions=2, update_batch=256, tuned=(("all", 1e-3, 1, 0),))
    run = Run(dataclasses.replace(recipe, studies=sizes), folder, "tuned")
    found = list(tuned_chats.tuned_chats(run))
    assert {finding.system for finding in found} == {"finetuned"}
    assert {f.metric for f in found} == {"contained", "exact", "unchanged", "perplexity"}
    text = capsys.readouterr().out
    parameters = sum(p.numel() for p in run.decoder.model.parameters())
    flop = sum(needs(recipe, folder)[stage].flops for stage in ("datastore", "targets", "memory"))
    assert f"tuned: {int(flop / 6 / parameters)} tokens at most" in text
    list(tuned_chats.tuned_chats(run))  # what is trained is not trained again
    assert "tokens at most" not in capsys.readouterr().out


def test_every_setting_of_tuned_chats_has_a_checkpoint_of_its_own(finished, monkeypatch):
    folder, recipe = finished
    begun = []

    def train(run, setting, place, checkpoint):
        begun.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuned_chats, "_train", train)
    run = Run(recipe, folder, "tuned")
    for setting in (("all", 2e-3, 1, 0), ("all", 3e-3, 1, 0), ("all", 3e-3, 1, 8)):
        with pytest.raises(KeyboardInterrupt):
            tuned_chats.tuned_decoder(run, setting)
    assert len({*begun}) == 3


def test_the_study_of_tuned_chats_says_what_it_needs(finished):
    folder, recipe = finished
    with pytest.raises(MlpMemError, match="tuned = "):
        list(tuned_chats.tuned_chats(Run(recipe, folder, "tuned")))


def test_an_answer_is_contained_as_whole_words_near_the_beginning():
    row = {"answer": "Lima", "aliases": ["Ciudad de los Reyes"]}
    assert chats.is_contained("It is lima, I think.", row)
    assert chats.is_contained("Ciudad de los reyes", row)
    assert not chats.is_contained("Limani", row)
    assert not chats.is_contained("word " * 12 + "Lima", row)
    assert chats.is_exact(" Lima. ", row) and not chats.is_exact("Lima it is", row)


def test_its_bundle_answers_in_the_decoders_template(finished):
    folder, _ = finished
    bundle = load_bundle(folder / "export" / "chatty")
    model = bundle.model()
    assert not model.questions and bundle.read_json("examples.json")
    assert model.decoder.half_lives == LIVES and "memory" in model.routers
    trace = model.chat("Who are you?", max_new_tokens=3)
    assert trace.prompt == "Be kind.</s>u:Who are you?</s>a:" and trace.lmbda is not None
    results = bundle.read_json("results.json")
    assert {"real/test", "invented/test"} <= results["systems"][0]["accuracy"].keys()
    assert results["systems"][0]["ppl"].keys() == {*SORTS, "plain"}


def test_processes_share_a_step_of_facts_and_kept_rows(finished):
    folder, recipe = finished
    config = dataclasses.replace(recipe.memory, kept=7, noise=0.5)
    decoder = Decoder.load(folder / "decoder")
    Memory.load(folder / "memory").bind(decoder)
    data = folder / "datastore", folder / "targets"
    rows = TargetRows(*data, config, 1, decoder=decoder)
    plain = TargetRows(*data, dataclasses.replace(config, rivals=0.0), 1, decoder=decoder)
    whole, unmixed = rows.batch(2, 0, 1), plain.batch(2, 0, 1)
    size, changed = decoder.hidden_size, whole["keys"] != unmixed["keys"]
    assert not changed[:, :size].any() and 0 < changed.any(1).float().mean() < 0.9
    whole = rows.batch(2, 0, 1)
    shares = [rows.batch(2, rank, 3) for rank in range(3)]
    assert sum(len(share["targets"]) for share in shares) == len(whole["targets"])
    order = [torch.cat([share["keys"] for share in shares]), whole["keys"]]
    assert torch.equal(*(keys[keys[:, 0].argsort()] for keys in order))
    assert sum(int((share["alpha"] == 1).sum()) for share in shares) == 7


def test_a_router_learns_which_answers_were_taught(finished):
    folder, recipe = finished
    decoder = chatty()
    data = kind_of(folder / "corpus").router_data(folder / "corpus", decoder, recipe.router, 0)
    groups = np.array(data.documents.groups)[
        data.documents.document_of[data.documents.passage_at(data.positions)]
    ]
    assert data.taught.bool().tolist() == np.isin(groups, ["real", "invented"]).tolist()
    assert float(data.weights[data.taught == 1].sum()) == pytest.approx(1 / 3, abs=1e-5)
    assert bool((np.diff(data.positions) > 0).all())
