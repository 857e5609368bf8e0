"""The hidden-Markov language of S11 against the enumeration of everything that it can say."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from analysis.study.from_scratch.language import Language, Vocabulary, broad_language, shifted_language

CLASSES = 3
SMALL = broad_language(3, CLASSES, successors=2, exponent=1.2, seed=5)
WORDS = Vocabulary(classes=CLASSES, split=2, exponent=1.5, dead=1)


def enumerated(language, vocabulary, tokens):
    """Distribution of the token after ``tokens``: every path of states, weighed, and every token that may follow."""
    weight = np.concatenate([np.outer(np.ones(CLASSES), vocabulary.weights()).ravel(), np.zeros(vocabulary.dead)])

    def emitted(state, token):
        live = token < CLASSES * vocabulary.split
        return float(language.emission[state, token // vocabulary.split]) * weight[token] if live else 0.0

    found = np.zeros(vocabulary.size)
    for following in range(vocabulary.size):
        text = [*tokens, following]
        for path in product(range(3), repeat=len(text)):
            p = float(language.start[path[0]])
            for before, after in pairwise(path):
                p *= float(language.transition[before, after])
            for state, token in zip(path, text, strict=True):
                p *= emitted(state, token)
            found[following] += p
    return found / found.sum()


@pytest.mark.parametrize("shifted", [False, True])
def test_conditionals_are_those_of_the_enumeration(shifted):
    language = shifted_language(SMALL, sharpness=2.0, exponent=2.5, seed=1) if shifted else SMALL
    tokens = torch.tensor([[0, 3, 5, 2], [4, 4, 1, 0]])
    classes = language.conditionals(tokens // WORDS.split)
    for sequence, known in zip(tokens.tolist(), classes, strict=True):
        for t in range(4):
            expected = enumerated(language, WORDS, sequence[: t + 1])
            np.testing.assert_allclose(WORDS.spread(known[t : t + 1])[0], expected, rtol=1e-10, atol=1e-14)


def test_drawn_tokens_have_the_conditionals_that_filtering_gives():
    """Scored by the exact conditionals, the mean log-loss is the mean entropy and each token comes as often as told."""
    classes = SMALL.draw(4000, 9, torch.Generator().manual_seed(0))
    tokens = WORDS.draw(classes, torch.Generator().manual_seed(1))
    assert torch.equal(tokens // WORDS.split, classes)
    p = WORDS.spread(SMALL.conditionals(classes[:, :-1]).flatten(0, 1))
    target = tokens[:, 1:].flatten()
    loss = -p.gather(-1, target.unsqueeze(-1)).squeeze(-1).log()
    entropy = -torch.xlogy(p, p).sum(-1)
    off = loss - entropy
    assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5
    share = torch.bincount(target, minlength=WORDS.size) / len(target)
    assert (share - p.mean(0)).abs().max() < 0.01
    first = torch.bincount(classes[:, 0], minlength=CLASSES) / len(classes)
    torch.testing.assert_close(first.double(), SMALL.unigram, atol=0.03, rtol=0)


def test_the_start_is_stationary_and_the_shifted_language_is_half_new_and_nearly_determined():
    broad = broad_language(40, 32, successors=4, exponent=1.5, seed=2)
    torch.testing.assert_close(broad.start @ broad.transition, broad.start, atol=1e-12, rtol=0)
    assert ((broad.transition > 0).sum(-1) <= 4).all()
    shifted = shifted_language(broad, sharpness=3.0, exponent=3.5, seed=3)
    same = (shifted.emission.argsort(-1, descending=True) == broad.emission.argsort(-1, descending=True)).all(-1)
    assert same[1::2].all()
    assert not same[::2].any()
    entropy = {
        name: float(-torch.xlogy(p, p).sum(-1).mean())
        for name, p in (
            (name, language.conditionals(language.draw(50, 12, torch.Generator().manual_seed(0))))
            for name, language in (("broad", broad), ("shifted", shifted))
        )
    }
    assert entropy["shifted"] < 0.6 * entropy["broad"]


def test_splitting_and_dead_tokens_leave_the_classes_as_they_were():
    p = SMALL.conditionals(torch.tensor([[0, 1, 2]])).flatten(0, 1)
    spread = WORDS.spread(p)
    assert spread.shape == (3, WORDS.size) == (3, 7)
    torch.testing.assert_close(spread[:, :6].unflatten(-1, (3, 2)).sum(-1), p)
    assert not spread[:, 6].any()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"^transition must have rows of at least 0 that sum to 1\.$"):
        Language(torch.ones(2, 2), torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"shapes \(S, S\) and \(S, classes\), got \(2, 3\) and \(2, 3\)\.$"):
        Language(torch.full((2, 3), 1 / 3), torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"^split must be at least 1, got 0\.$"):
        Vocabulary(classes=3, split=0)
    with pytest.raises(ValueError, match=r"^successors must be at least 1, got 0\.$"):
        broad_language(3, 3, successors=0, exponent=1.0, seed=0)
