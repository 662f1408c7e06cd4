"""Images and captions ranked for one another, against a plain definition."""

from types import SimpleNamespace

import pytest
import torch

from petx import hosts
from petx.data.examples import Example
from petx.train import ranking


class Known:
    """A host whose vectors and logits are given: an image is its number, a caption its text, a number."""

    def __init__(self, similarity, odds):
        self.similarity, self.odds, self.asked = similarity, odds, []

    def pictures(self, items):
        return {"place": torch.tensor(items)}

    def captions(self, items):
        return {"place": torch.tensor(items)}

    def seen(self, model, batch):
        return batch

    def embed_images(self, model, seen):
        return self.similarity[seen["place"]][:, None]

    def embed_texts(self, model, batch):
        return torch.eye(self.similarity.shape[1])[batch["place"]]

    def match(self, model, seen, captions):
        pairs = list(zip(seen["place"].tolist(), captions["place"].tolist(), strict=True))
        self.asked += pairs
        return torch.tensor([[0.5, 0.5 + self.odds[i, j]] for i, j in pairs])


@pytest.mark.parametrize("rerank", [0, 3, 100])
def test_rankings_are_the_plain_definition(monkeypatch, rerank):
    draw = torch.Generator().manual_seed(1)
    counts = [1, 3, 2, 5, 1, 1, 2, 2, 1, 4, 1, 1]
    total = sum(counts)
    sizes = (len(counts), total)
    similarity, odds = (torch.randint(-16, 17, sizes, generator=draw) / 8 for _ in range(2))  # exact sums, with ties
    texts = iter(map(str, range(total)))
    examples = [Example("", (i,), (), tuple(next(texts) for _ in range(n)), id=i) for i, n in enumerate(counts)]
    host = Known(similarity, odds)
    task = SimpleNamespace(examples=examples, rerank=rerank, picture=lambda one: one.id, caption=int)
    monkeypatch.setattr(hosts, "bound", lambda model, tokenizer: host)
    model = torch.nn.Module()
    model.device = torch.device("cpu")
    found = ranking.rankings(model, task, None, batch_size=4)

    def ranked(row, more):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        first = sorted(order[:rerank], key=lambda j: (-(row[j] + more[j]), j))
        return [*first, *order[rerank:]][:10]

    names = [f"{i}#{k}" for i, n in enumerate(counts) for k in range(n)]
    for i, one in enumerate(found):
        assert list(one.captions) == [names[j] for j in ranked(similarity[i].tolist(), odds[i].tolist())]
    columns = [best for one in found for best in one.images]
    for j, best in enumerate(columns):
        assert list(best) == [str(i) for i in ranked(similarity[:, j].tolist(), odds[:, j].tolist())]
    assert len(set(host.asked)) == len(host.asked) <= rerank * (len(counts) + total)  # no pair is matched twice
