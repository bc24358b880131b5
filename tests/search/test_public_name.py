"""The name by which users' code imports the embedder."""

from tacaf import inference
from tacaf.search import embedder


def test_the_public_name_is_the_same_class():
    assert inference.Embedder is embedder.Embedder
