"""The public import path of `Embedder` for users' code; it is defined in `tacaf.search.embedder`."""

from tacaf.search.embedder import Embedder as Embedder
