"""Lemmas of generated answers, as LAVIS takes them; spaCy is stood in for where it is not the point."""

import importlib.util
import sys
import types

import pytest

from petx import hosts, tasks
from petx.data import lemmas
from petx.errors import UserError
from petx.train.petal import arguments

HOST = hosts.find("instruct_blip")
WORDS = {"dogs": ("dog", "NOUN"), "running": ("run", "VERB"), "better": ("good", "ADJ"), "Toys": ("toy", "NOUN")}


def word(text):
    lemma, kind = WORDS.get(text, (f"{text}?", "X"))
    return types.SimpleNamespace(text=text, lemma_=lemma, pos_=kind)


@pytest.fixture
def spacy(monkeypatch):
    """A stand-in for spaCy with its model."""
    made = types.ModuleType("spacy")
    made.load = lambda name: {lemmas.MODEL: lambda text: map(word, text.replace("'", " '").split())}[name]
    for name, module in (("spacy", made), (lemmas.MODEL, types.ModuleType(lemmas.MODEL))):
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    lemmas._pipeline.cache_clear()
    yield made
    lemmas._pipeline.cache_clear()


def test_nouns_and_verbs_become_lemmas_and_other_words_stay(spacy):
    assert lemmas.lemmatized("two dogs' Toys running better") == "two dog ' toy run better"
    assert lemmas.lemmatized("") == ""


def settings(**more):
    return arguments.checked(arguments.read_preset("smoke") | {"lemmatize": True} | more)


def test_what_is_missing_is_named_before_any_work(monkeypatch, spacy):
    checked = settings()
    HOST.check(checked)
    monkeypatch.delitem(sys.modules, lemmas.MODEL)
    with pytest.raises(
        UserError, match=r"lemmatize needs en_core_web_sm, .*; get it with: pip install spacy && python"
    ):
        HOST.check(checked)
    captions = dict(data="image-text", data_dir=".", host="x", tasks=["caption", "textcaps"])
    monkeypatch.setitem(sys.modules, lemmas.MODEL, spacy)
    with pytest.raises(UserError, match="lemmatize is for answers, and all tasks are captions"):
        HOST.check(settings(**captions))
    HOST.check(settings(**captions | {"tasks": ["caption", "okvqa"]}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lemmatize needs spacy, which is not installed"):
        HOST.check(checked)


def test_a_model_of_another_version_is_told(spacy):
    def load(name):
        raise OSError("E053")

    spacy.load = load
    with pytest.raises(UserError, match=r"spaCy cannot load en_core_web_sm \(E053\); get it with"):
        lemmas.lemmatized("dogs")


def test_answers_have_lemmas_and_captions_stay(spacy):
    for name, finished in (("okvqa", "dog"), ("textcaps", "dogs")):
        task = HOST.dataset(tasks.find(name), [], None, types.SimpleNamespace(text=None), settings(), "test")
        assert task.finished(" dogs\n") == finished
