"""The same search by FAISS, through `datasets`, where faiss is installed (the extra `faiss`)."""

import datasets
import numpy as np
import torch
from torch import Tensor

from ...modeling_speechclip_plus.embedding_index import EmbeddingIndex


def search_with_faiss(index: EmbeddingIndex, queries: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of each query with a flat FAISS index of inner products.

    It is held in memory, and sums in float32: of rows with nearly equal scores it may choose others than
    `EmbeddingIndex.search`, whose arguments and results these are.

    Raises:
        ImportError: if faiss is not installed.
        ValueError: as `EmbeddingIndex.search`.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'Searching with FAISS needs it installed: `pip install "speechclip-plus[faiss]"`. Without it (leave '
            "--faiss out) the search is exact, too."
        ) from error
    queries, top_k = index.checked_queries(queries, top_k)
    rows = datasets.Dataset.from_dict({"row": np.arange(len(index))})
    rows.add_faiss_index_from_external_arrays(
        external_arrays=index.embeddings, index_name="embeddings", metric_type=faiss.METRIC_INNER_PRODUCT
    )
    found = rows.search_batch("embeddings", queries.float().numpy(), k=top_k)
    scores, places = np.asarray(found.total_scores), np.asarray(found.total_indices)
    order = np.lexsort((places, -scores))  # of equal scores the lower row first
    return (
        torch.from_numpy(np.take_along_axis(scores, order, 1)).float(),
        torch.from_numpy(np.take_along_axis(places, order, 1)).long(),
    )
