"""MiniLM's sentence similarities come out right through the compiled path."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def embed(loaded):
    """Embeddings by the compiled model; `model=` replaces it."""
    job = loaded("minilm")
    import torch

    from app.workloads import minilm

    def embeddings(texts, length=48, model=job.model):
        with torch.inference_mode():
            return minilm.embed(model, texts, length)

    embeddings.eager = job.eager
    return embeddings


def test_cat_is_near_kitten_and_far_from_stock(embed):
    cat, kitten, stock = embed(["cat", "kitten", "stock"])
    # as transformers' own AutoModel and AutoTokenizer give them on this folder, with a mean over the tokens
    assert float(cat @ kitten) == pytest.approx(0.78, abs=0.02)
    assert float(cat @ stock) == pytest.approx(0.25, abs=0.02)
    assert float(cat @ cat) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("sentence", "related", "unrelated"),
    [
        ("A cat sleeps on the warm windowsill.", "The kitten chased a ball of wool across the kitchen.",
         "Share prices fell sharply after the announcement."),
        ("How do I reset my password?", "I forgot my password and can't log in.", "The museum is closed on Mondays."),
        ("She kneaded the dough and let it rise for an hour.", "Bake the bread until the crust is deep brown.",
         "The train to the coast leaves at half past nine."),
        ("Share prices fell sharply after the announcement.",
         "The stock market closed higher for the third day in a row.", "Two dogs ran along the beach at dawn."),
    ],
)  # fmt: skip
def test_related_shipped_sentences_are_nearer_than_unrelated_ones(embed, sentence, related, unrelated):
    from app.workloads import minilm

    assert {sentence, related, unrelated} <= set(minilm.sentences())
    one, near, far = embed([sentence, related, unrelated])
    assert float(one @ near) > float(one @ far) + 0.15


def test_padding_does_not_change_an_embedding(embed):
    import torch

    from app.workloads import minilm

    texts = minilm.sentences()[:5]
    at_48 = embed(texts)
    for length in (16, 128):
        torch.testing.assert_close(embed(texts, length), at_48, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(embed(texts, model=embed.eager), at_48, rtol=1e-3, atol=1e-4)


def test_output_is_the_class_that_eager_gives(loaded):
    import torch

    job = loaded("minilm")
    args, kwargs = job.context.workload.call(2)
    with torch.inference_mode():
        ours, eager = job.model(*args, **kwargs), job.eager(*args, **kwargs)
    assert type(ours) is type(eager)
    assert list(ours) == list(eager) == ["last_hidden_state", "pooler_output"]
