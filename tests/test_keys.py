from __future__ import annotations

from cellxpert import keys


def test_default_names_are_the_documented_ones():
    assert keys.LATENT == "X_cellxpert"
    assert (keys.LABEL, keys.confidence_key(), keys.proba_key()) == (
        "cellxpert_label",
        "cellxpert_confidence",
        "cellxpert_proba",
    )


def test_names_of_what_comes_with_a_label_are_the_documented_ones():
    assert keys.reason_key() == "cellxpert_reason"
    assert keys.ood_key() == "cellxpert_ood"
    assert keys.uncertainty_key() == "cellxpert_uncertainty"
    assert keys.ontology_key() == "cellxpert_label_ontology_term_id"
    assert keys.set_size_key() == "cellxpert_set_size"
    assert keys.sets_key() == "cellxpert_sets"
    assert keys.EXPERTS == "cellxpert_experts"


def test_what_is_predicted_has_names_of_its_own():
    assert keys.PERTURBED == "cellxpert_perturbed"
    assert keys.perturbed_latent_key() == "X_cellxpert_perturbed"
    assert keys.perturbed_latent_key("mine") == "X_mine"
    assert keys.perturbed_latent_key() != keys.LATENT


def test_names_for_another_key_do_not_collide():
    assert keys.confidence_key("mine") == "mine_confidence"
    assert keys.proba_key("mine_label") == "mine_proba"
    functions = [getattr(keys, name) for name in keys.__all__ if name.endswith("_key")]
    for key in ("cellxpert_label", "mine", "label"):
        assert len({key, *(name(key) for name in functions)}) == 1 + len(functions)
    assert keys.ontology_key("mine") == "mine_ontology_term_id"
    assert keys.sets_key("mine_label") == "mine_sets"


def test_the_record_is_where_scanpy_does_not_write():
    # sc.pp.neighbors(key_added="cellxpert") would replace uns["cellxpert"]
    assert keys.INFO != "cellxpert"


def test_all_names_are_listed():
    constants = {name for name in vars(keys) if name.isupper()}
    assert constants <= set(keys.__all__)
    values = [getattr(keys, name) for name in constants]
    assert len(set(values)) == len(values)
    assert all(isinstance(value, str) and "/" not in value for value in values)
