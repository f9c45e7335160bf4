"""Whatever cannot be predicted is refused before anything is computed, with a line that mends it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cellxpert.config import SteeringConfig
from cellxpert.data.collate import Collator
from cellxpert.data.perturbations import Perturbations
from cellxpert.errors import CellxPertError, ConfigError, ControlError, FewCellsError, GeneError, InterventionError
from cellxpert.nn import Network
from cellxpert.tasks import checks, choices


def refused(call, kind, *words):
    """The error of a call: its class, its words, and that it says what to do."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is kind
    assert isinstance(caught.value, CellxPertError)
    assert "Fix: " in text
    for word in words:
        assert word in text, text
    return text


# --- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [0, -3, 1_000_001, 2.5, "200", None, True])
def test_numbers_of_steps(make_job, n_steps):
    refused(lambda: make_job("gene_00", n_steps=n_steps), InterventionError, "n_steps", "1 to 1,000,000")


@pytest.mark.parametrize("n_chains", [0, -1, 1.5, "4"])
def test_numbers_of_chains(make_job, n_chains):
    refused(lambda: make_job("gene_00", n_chains=n_chains), InterventionError, "n_chains")


def test_defaults(make_job):
    job = make_job("gene_00", n_chains=None, n_steps=np.int64(7))
    assert (job.n_replicates, job.n_steps, job.target, job.kernel) == (4, 7, "learned", "ancestral")


def test_targets(make_job):
    refused(lambda: make_job("gene_00", target="perturbed"), InterventionError, "'learned', 'anchored'")


@pytest.mark.parametrize("regulators", [{"gene_00": "gene_03"}, ["gene_03"], "gene_03"], ids=str)
def test_regulators_are_lists_of_genes(make_job, regulators):
    """A single name would be read letter by letter."""
    refused(lambda: make_job("gene_00", regulators=regulators), InterventionError, "regulators", "mapping")


@pytest.mark.parametrize(
    ("embedding", "words"),
    [
        (np.eye(2), "ndarray"),
        (pd.DataFrame([["x"], ["y"]], index=["gene_00", "gene_01"]), "finite"),
        (pd.DataFrame([[np.nan], [1.0]], index=["gene_00", "gene_01"]), "finite"),
        (pd.DataFrame([[np.inf], [1.0]], index=["gene_00", "gene_01"]), "finite"),
        (pd.DataFrame([[0.0], [1.0]], index=["gene_00", "gene_00"]), "gene_00"),
    ],
    ids=["array", "text", "missing", "infinite", "twice"],
)
def test_embeddings(make_job, embedding, words):
    refused(lambda: make_job("gene_00", embedding=embedding), InterventionError, "target_embedding", words)


# --- the target and its kernels ----------------------------------------------------------------------------------------


def test_a_model_that_saw_no_perturbed_cells(make_job):
    refused(lambda: make_job("gene_00", target="learned", perturbations=None), ControlError, "zero-shot")
    assert make_job("gene_00", perturbations=None).target == "zero-shot"
    # observed cells may still steer
    assert make_job("gene_00", perturbations=None, target="anchored").kernel == "block"


def test_a_network_without_factors(make_job, screened):
    config = replace(screened._state.network.config, n_factors=0)
    plain = Network(config, feature_modality=[0] * 44 + [2] * 6, n_bins=50).eval()
    refused(lambda: make_job("gene_00", network=plain), InterventionError, "n_factors")


@pytest.mark.parametrize(
    ("settings", "target", "kernel"),
    [
        ({}, "learned", "ancestral"),
        ({}, "zero-shot", "ancestral"),
        ({}, "anchored", "block"),
        ({"weight": 0.7}, "learned", "block"),
        ({"part": "pseudo"}, "learned", "block"),
        ({"part": "none"}, "anchored", "block"),
        ({"weight": 0.0}, "predicted", "block"),
        ({"kernel": "suffix"}, "anchored", "suffix"),
        ({"kernel": "fill-in"}, "learned", "fill-in"),
        ({"kernel": "informed", "distance": "histogram"}, "anchored", "informed"),
    ],
    ids=str,
)
def test_kernels(make_job, settings, target, kernel, small):
    assert make_job("gene_00", target=target, settings=replace(small, **settings)).kernel == kernel


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"kernel": "ancestral"}, "anchored"),
        ({"kernel": "fill-in"}, "predicted"),
        ({"kernel": "ancestral", "weight": 0.7}, "learned"),
        ({"kernel": "ancestral", "part": "pseudo"}, "learned"),
        ({"kernel": "suffix", "part": "pseudo"}, "anchored"),
        ({"kernel": "tilted", "distance": "histogram"}, "anchored"),
        ({"part": "none"}, "learned"),
        ({"weight": 0.0}, "zero-shot"),
    ],
    ids=str,
)
def test_kernels_that_do_not_sample_the_target(make_job, settings, target, small):
    """Anchors or weights that a kernel would leave out in silence."""
    refused(lambda: make_job("gene_00", target=target, settings=replace(small, **settings)), ConfigError)


# --- cells -------------------------------------------------------------------------------------------------------------


def test_control_cells(make_job, subjects, screened):
    has_rna = screened._data.obsmap["rna"].ravel() > 0
    control = np.array(subjects.condition) == "control"
    assert make_job("gene_00").groups["all"].tolist() == np.flatnonzero(control & has_rna).tolist()
    assert (control & ~has_rna).any()  # these have nothing to start from
    everyone = make_job("gene_00", subjects=replace(subjects, condition=None, group=None), target="zero-shot")
    assert everyone.groups["all"].tolist() == np.flatnonzero(has_rna).tolist()
    others = replace(subjects, control="ctrl", group=None)
    refused(lambda: make_job("gene_00", subjects=others), ControlError, "'ctrl'")


def test_groups(make_job, subjects):
    groups = make_job("gene_00", subjects=subjects).groups
    assert list(groups) == ["type_0", "type_1"]
    everyone = make_job("gene_00").groups["all"]
    assert sorted(np.concatenate(list(groups.values())).tolist()) == everyone.tolist()
    assert all(subjects.group[row] == name for name, rows in groups.items() for row in rows)


def test_groups_with_too_few_control_cells(make_job, subjects, small):
    rows = make_job("gene_00").groups["all"]
    group = np.full(len(subjects.names), "many", object)
    group[rows[:4]] = "few"
    few = replace(subjects, group=list(group))
    text = refused(lambda: make_job("gene_00", subjects=few), FewCellsError, "'few'", "4 control cells")
    assert "min_cells=4" in text
    assert make_job("gene_00", subjects=few, settings=replace(small, min_cells=4)).n_conditions == 2


def test_groups_without_control_cells(make_job, subjects):
    """They do not vanish in silence."""
    treated = np.array(subjects.condition) == "gene_00"
    group = np.where(treated, "treated only", "others")
    empty = replace(subjects, group=list(group))
    refused(
        lambda: make_job("gene_00", subjects=empty), FewCellsError, "'treated only'", "0 control cells", "without it"
    )


def test_requests_that_explode(make_job, subjects, monkeypatch):
    monkeypatch.setattr(checks, "MAX_CONDITIONS", 5)
    genes = ["gene_00", "gene_01", "gene_05"]
    found = "3 perturbations x 2 groups = 6 conditions, 72 cells"
    refused(lambda: make_job(genes, subjects=subjects), InterventionError, found, "at most 5")


# --- genes -------------------------------------------------------------------------------------------------------------


def test_unknown_genes(make_job):
    refused(lambda: make_job("Gene_00"), GeneError, "did you mean 'gene_00'?")


def test_two_names_of_one_gene(make_job, screened, small):
    """A name and an id, set in different ways, would contradict each other."""
    state = screened._state
    block = state.vocabulary.block("rna")
    ids = tuple(f"ENSG{i:011d}" for i in range(44))
    vocabulary = replace(state.vocabulary, blocks=(replace(block, ids=ids), *state.vocabulary.blocks[1:]))
    seen = replace(state.perturbations, targets=tuple(sorted({*state.perturbations.targets, ids[0]})))
    from cellxpert.tasks.screens import Asked

    job = make_job("gene_00")
    asked = Asked(genes={"gene_00": "knockout", ids[0]: "overexpression"}, settings=small)
    call = lambda: checks.make_screen(
        asked, job.subjects, network=state.network, vocabulary=vocabulary, perturbations=seen
    )
    refused(call, InterventionError, "names of one gene")


def _without(subjects, feature):
    """The same cells, one gene not measured."""
    tokens = subjects.collator.tokens
    keep = tokens.feature != feature
    measured = tokens.measured_features.copy()
    measured[:, feature] = False
    cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)[keep]
    start = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=tokens.n_cells))])
    fewer = replace(tokens, feature=tokens.feature[keep], bin=tokens.bin[keep], start=start, measured_features=measured)
    return replace(subjects, collator=Collator(fewer, n_features=50, n_bins=50), group=None)


def test_genes_that_are_not_measured_here(make_job, subjects):
    other = _without(subjects, 0)
    refused(lambda: make_job("gene_00", subjects=other, target="zero-shot"), GeneError, "not measured", "learned")
    untrained = {"subjects": other, "perturbations": None}
    text = refused(lambda: make_job("gene_00", **untrained), GeneError, "not measured")
    assert "learned" not in text
    assert make_job("gene_00", subjects=other).target == "learned"  # what it does is known


@pytest.fixture
def elsewhere(screened) -> Perturbations:
    """Perturbed cells of a gene that is no feature."""
    seen = screened._state.perturbations
    return replace(seen, targets=(*seen.targets, "unread"), conditions=(*seen.conditions, "unread"))


def test_genes_that_are_no_features(make_job, elsewhere):
    given = {"perturbations": elsewhere}
    assert make_job("unread", **given).target == "learned"
    refused(lambda: make_job("unread", target="zero-shot", **given), GeneError, "'unread'", "not measured")
    embedding = pd.DataFrame(np.eye(2), index=["gene_00", "new"])
    assert make_job("new", embedding=embedding, **given).target == "learned"
    refused(lambda: make_job("new", **given), GeneError, "'new'")
    refused(lambda: make_job("new", embedding=embedding, perturbations=None), GeneError, "'new'")
    refused(lambda: make_job("new+gene_00", target="zero-shot", embedding=embedding), GeneError, "['new']")


def test_doses_need_bins_that_cells_share(make_job, screened):
    within = replace(screened._state.vocabulary, binning="per_cell")
    half = {"gene_00": ("fold", 0.5)}
    refused(
        lambda: make_job(half, target="zero-shot", vocabulary=within),
        InterventionError,
        "dose of 0.5",
        "binning='global'",
    )
    assert make_job(half, target="zero-shot").target == "zero-shot"
    assert make_job("gene_00", target="zero-shot", vocabulary=within).target == "zero-shot"


def test_anchors_need_observed_cells(make_job, subjects):
    refused(lambda: make_job("gene_09", target="anchored"), ControlError, "predicted")
    refused(lambda: make_job({"gene_00": ("fold", 0.5)}, target="anchored"), ControlError, "gene_00(fold 0.5)")
    assert make_job("gene_06+gene_01", target="anchored").target == "anchored"
    nobody = replace(subjects, condition=["control"] * len(subjects.names), group=None)
    refused(lambda: make_job("gene_00", subjects=nobody, target="predicted"), ControlError, "no perturbed cells")
    refused(lambda: make_job("gene_00", subjects=nobody, target="anchored"), ControlError)
    held_out = replace(subjects, known=np.array(subjects.condition) != "gene_00", group=None)
    refused(lambda: make_job("gene_00", subjects=held_out, target="anchored"), ControlError)


def test_doses_that_a_target_does_not_know(make_job):
    """Not left out in silence."""
    for target in ("learned", "anchored", "predicted"):
        refused(lambda t=target: make_job({"gene_00": ("bin", 0)}, target=t), InterventionError, "zero-shot")
    assert make_job({"gene_00": ("bin", 0)}, target="zero-shot").requests[0].bins == (0,)
    refused(lambda: make_job({"gene_00": ("fold", 2.0)}, target="predicted"), InterventionError, "another dose")
    assert make_job({"gene_00": "knockout", "gene_01": "knockout"}, target="predicted").target == "predicted"


def test_nothing_is_written_by_a_call_that_is_refused(make_job, tmp_path):
    folder = tmp_path / "screen"
    with pytest.raises(GeneError):
        make_job("nothing", folder=folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("regulators", "words"),
    [
        ({"gene_O0": ["gene_01"]}, "did you mean 'gene_"),
        ({"gene_00": ["gene_O1"]}, "none of which the model knows[\\s\\S]*did you mean 'gene_"),
        ({"gene_00": None}, "regulators="),
    ],
)
def test_regulators_that_name_nothing_are_refused(make_job, regulators, words):
    with pytest.raises((GeneError, InterventionError), match=words):
        make_job("gene_00", regulators=regulators)


def test_of_many_regulators_some_may_be_unknown(make_job):
    """As those of a table of the whole genome are, and genes that are not asked for."""
    table = {"gene_00": ["gene_01", "TP53"], "MYC": ["MAX"], "gene_05": ["TP53"]}
    assert make_job("gene_00", regulators=table).asked.regulators
    assert make_job(["gene_00", "gene_05"], regulators=table).asked.regulators


REGULON = pd.DataFrame(
    [
        ("gene_03", "gene_00", -1.0),
        ("gene_00", "gene_00", 1.0),  # acts on itself
        ("TP53", "gene_00", 1.0),
        ("gene_03", "gene_00", 0.5),  # of another source
        ("gene_02", "gene_00", 2.0),
        ("gene_00", "gene_05", 1.0),
        ("MAX", "MYC", 1.0),
        ("gene_07", "gene_07", 1.0),
    ],
    columns=["source", "target", "weight"],
)


@pytest.mark.parametrize(
    "table",
    [
        REGULON,
        REGULON.drop(columns="weight"),
        REGULON[::-1].set_index("weight"),
        REGULON.astype({"source": "category", "target": "string"}),
    ],
    ids=["weights", "names", "reversed", "dtypes"],
)
def test_a_table_of_regulators_is_the_mapping_it_says(make_job, table):
    before, expected = table.copy(), {"gene_00": ["TP53", "gene_02", "gene_03"]}
    job = make_job("gene_00", regulators=table)
    assert job.asked.regulators == expected
    assert job.fingerprint("model") == make_job("gene_00", regulators=expected).fingerprint("model")
    together = make_job("gene_00+gene_05", regulators=table)
    assert list(together.asked.regulators.items()) == [*expected.items(), ("gene_05", ["gene_00"])]
    assert choices.regulators_of(together, together.requests[0]) == [2, 3]
    pd.testing.assert_frame_equal(table, before)


def test_the_perturbed_gene_by_its_id_is_no_regulator(make_job, screened):
    """It would stay as it is, and what it was set to would be lost."""
    vocabulary = screened._state.vocabulary
    ids = tuple(f"ENSG{i:011d}" for i in range(44))
    job = make_job("gene_00", regulators={"gene_00": ["gene_02"]})
    named = replace(vocabulary, blocks=(replace(vocabulary.block("rna"), ids=ids), *vocabulary.blocks[1:]))
    asked = replace(job.asked, regulators={"gene_00": [ids[0], ids[3], "gene_02"]})
    job = replace(job, vocabulary=named, asked=asked)
    assert choices.regulators_of(job, job.requests[0]) == [2, 3]


def test_a_gene_that_acts_on_itself_does_so_in_neither_form(make_job):
    table = make_job("gene_00", regulators=REGULON)
    mapping = make_job("gene_00", regulators={"gene_00": ["gene_00", "gene_02", "gene_03"]})
    found = [choices.regulators_of(job, job.requests[0]) for job in (table, mapping)]
    assert found == [[2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (REGULON.rename(columns={"source": "tf"}), "columns ['tf', 'target', 'weight']"),
        (REGULON.iloc[:, [0, 1, 1]], "columns ['source', 'target', 'target']"),
        (pd.DataFrame({"gene_00": ["gene_03"]}), "columns ['gene_00']"),
        (pd.DataFrame(), "columns []"),
        (REGULON[:0], "without rows"),
        (REGULON.replace({"target": {"MYC": None}}), "None for a gene in 1 rows of column 'target'"),
        (REGULON.assign(source=np.nan), "nan for a gene in 8 rows of column 'source'"),
        (REGULON.assign(source=range(8)), "0 for a gene in 8 rows of column 'source'"),
        (REGULON.replace({"source": {"MAX": ""}}), "'' for a gene"),
    ],
    ids=["other names", "twice", "wide", "no columns", "no rows", "missing", "all missing", "numbers", "no letters"],
)
def test_tables_that_are_none_of_regulators(make_job, table, words):
    refused(lambda: make_job("gene_00", regulators=table), InterventionError, "perturb(regulators=)", words)


@pytest.mark.parametrize("gene", ["gene_01", "gene_07"])
def test_a_table_must_say_who_acts_on_a_gene_that_is_asked_for(make_job, gene):
    """That it acts on itself is no help."""
    refused(lambda: make_job(gene, regulators=REGULON), GeneError, f"no entry of ['{gene}']: nothing would be kept")
    table = REGULON.assign(source="gene_O3")
    refused(lambda: make_job("gene_00", regulators=table), GeneError, "none of which the model knows", "did you mean")


@pytest.mark.parametrize("seed", [-1, 1.7, True, "0"])
def test_seeds_are_whole_numbers(make_job, seed):
    with pytest.raises(InterventionError, match="seed="):
        make_job("gene_00", seed=seed)


def test_settings_are_settings(make_job):
    with pytest.raises(ConfigError, match="SteeringConfig"):
        make_job("gene_00", settings={"n_cells": 5})
    with pytest.raises(ConfigError, match="n_cells"):
        SteeringConfig(n_cells=12.5)


def test_a_dose_without_bounds_is_refused(make_job):
    with pytest.raises(InterventionError, match="a fold is at most 1000"):
        make_job({"gene_00": ("fold", 1e308)})


def test_cells_without_genes_are_no_anchors_and_in_no_mean(make_job, subjects, screened):
    """Cells that were measured by their proteins alone show no genes, which is not to show none."""
    rna = screened._data["rna"]
    has_rna = np.isin(list(subjects.names), rna.obs_names)
    assert not has_rna[subjects.known].all()
    rows = make_job("gene_00").observed.rows
    assert rows.tolist() == np.flatnonzero(subjects.known & has_rna).tolist()
