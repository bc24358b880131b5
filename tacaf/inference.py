"""The public name of `Embedder`, for users' code; its home is `tacaf.search.embedder`."""

from tacaf.search.embedder import Embedder as Embedder
