"""Measures this machine's rates in about a minute, with the code that builds use."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from remembrandt.data.decode import DecodeConfig, decode_image
from remembrandt.databases.bm25 import Bm25Document, build_embedded
from remembrandt.databases.planning.rates import EncoderRate, Rates, hardware
from remembrandt.databases.rows import embedding_array
from remembrandt.databases.vectors.runtime import import_faiss, threads
from remembrandt.encoders import EncoderConfig, open_encoder
from remembrandt.encoders.base import normalise
from remembrandt.progress import say

DIM = 512
_SECONDS = 2.0
_IMAGE_SIDE = 256
_BATCH = 32


def measure_rates(encoder: str | None = "mini-clip") -> Rates:
    """Measures one core (and one GPU, where the encoder runs on one); says on stderr what it is doing.

    Args:
        encoder: model whose forward rate is measured; None leaves encoders out.
    """
    encoders = {} if encoder is None else {encoder: measure_encoder(encoder)}
    rng = np.random.default_rng(0)
    vectors_ND = normalise(rng.standard_normal((32_768, DIM), dtype=np.float32))
    say("measure: row store")
    write_rate, read_rate = _row_store(vectors_ND)
    say("measure: vector indexes")
    with threads(1):
        flops = _flops(vectors_ND)
        codes = {codec: _codes(codec, vectors_ND) for codec in ("Flat", "SQfp16", "SQ8", "PQ")}
        graph, pairs, scan = _graph(vectors_ND), _pq_pairs(vectors_ND), _scan(vectors_ND)
    say("measure: BM25")
    documents, document_bytes = _bm25()
    say("measure: decoding")
    decode = _decode()
    return Rates(
        hardware=hardware(),
        measured_at=time.strftime("%Y-%m-%d"),
        decode_per_second=decode,
        row_bytes_per_second=write_rate,
        read_bytes_per_second=read_rate,
        flops=flops,
        code_values_per_second=codes,
        graph_values_per_second=graph,
        pq_pairs_per_second=pairs,
        scan_bytes_per_second=scan,
        documents_per_second=documents,
        document_bytes=document_bytes,
        encoders=encoders,
    )


def measure_encoder(model: str) -> EncoderRate:
    """Speed of one encoder on one core or GPU.

    Raises:
        ConfigError: no such model.
    """
    import torch

    say(f"measure: encoder {model}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        encoder = open_encoder(EncoderConfig(model=model))
        loaded = time.perf_counter() - start
        pixels_HWC = encoder.pixel_transform(_noise_image())
        batch_BHWC = np.repeat(pixels_HWC[None], _BATCH, axis=0)
        rate = _BATCH * _per_second(lambda: encoder.encode_pixels(batch_BHWC), 2 * _SECONDS)
        return EncoderRate(rate, loaded, encoder.dim, torch.cuda.is_available())
    finally:
        torch.set_num_threads(before)


def _per_second(work: Callable[[], Any], seconds: float = _SECONDS) -> float:
    """Runs a second, after one warm-up."""
    work()
    runs, start = 0, time.perf_counter()
    while True:
        work()
        runs += 1
        spent = time.perf_counter() - start
        if spent >= seconds:
            return runs / spent


def _row_store(vectors_ND: NDArray[np.float32]) -> tuple[float, float]:
    """Bytes a second written as rows with images, and read as embeddings."""
    rng = np.random.default_rng(1)
    images = [rng.bytes(8192) for _ in range(8192)]
    rows = vectors_ND[: len(images)]
    table = pa.table(
        {
            "key": [f"{i:09d}" for i in range(len(images))],
            "image": pa.array(images, pa.large_binary()),
            "embedding": embedding_array(rows),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()
        written = _per_second(lambda: lance.write_dataset(table, f"{folder}/{next(numbers)}"))
        dataset = lance.dataset(f"{folder}/0")
        read = _per_second(lambda: dataset.to_table(columns=["embedding"]))
    return written * table.nbytes, read * rows.size * 2


def _flops(vectors_ND: NDArray[np.float32]) -> float:
    index = _flat(vectors_ND[:2048])
    block = vectors_ND[:4096]
    return _per_second(lambda: index.search(block, 1)) * 2 * len(block) * index.ntotal * DIM


def _codes(codec: str, vectors_ND: NDArray[np.float32]) -> float:
    """Values a second through one list, whose centroid takes no time to find."""
    faiss = import_faiss()
    index = faiss.index_factory(DIM, f"IVF1,{'PQ64' if codec == 'PQ' else codec}", faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(vectors_ND[:1])
    if codec == "PQ":
        index.do_polysemous_training = False
        index.pq.cp.niter = index.pq.cp.min_points_per_centroid = 1
    index.train(vectors_ND[:2048])
    block, lists = vectors_ND[:4096], np.zeros(4096, np.int64)
    codes = np.empty((len(block), index.code_size), np.uint8)

    def encode() -> None:
        index.encode_vectors(len(block), faiss.swig_ptr(block), faiss.swig_ptr(lists), faiss.swig_ptr(codes))

    return _per_second(encode, _SECONDS / 2) * block.size


def _graph(vectors_ND: NDArray[np.float32]) -> float:
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 64
    graph.add(vectors_ND[:4096])
    block = vectors_ND[4096:5120]
    growth = np.log2(16_384) / np.log2(graph.ntotal)
    return float(_per_second(lambda: graph.search(block, 1), _SECONDS / 2) * block.size / growth)


def _pq_pairs(vectors_ND: NDArray[np.float32]) -> float:
    faiss = import_faiss()
    points = np.ascontiguousarray(vectors_ND[:8192, :4])

    def train() -> None:
        clustering = faiss.Kmeans(4, 256, niter=5, min_points_per_centroid=1)
        clustering.train(points)

    return _per_second(train, _SECONDS / 2) * 5 * len(points) * 256


def _scan(vectors_ND: NDArray[np.float32]) -> float:
    index = _flat(vectors_ND)
    return _per_second(lambda: index.search(vectors_ND[:1], 20), _SECONDS / 2) * vectors_ND.nbytes


def _flat(vectors_ND: NDArray[np.float32]) -> Any:
    index = import_faiss().IndexFlatIP(DIM)
    index.add(vectors_ND)
    return index


def _bm25(documents: int = 50_000) -> tuple[float, float]:
    """Documents a second, and bytes a document, of captions of about 15 words."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_embedded(_captions(documents), Path(folder))
        spent = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return documents / spent, size / documents


def _captions(count: int) -> Iterator[Bm25Document]:
    rng = np.random.default_rng(2)
    ranks_NW = rng.zipf(1.3, size=(count, 15)) % 50_000
    for number, ranks in enumerate(ranks_NW.tolist()):
        text = " ".join(f"w{rank}" for rank in ranks)
        yield Bm25Document(id=number, text=text, key=f"{number:09d}", group="", licence="", fields={})


def _decode() -> float:
    """A second of decoding and preprocessing one photograph-sized patch."""
    buffer = io.BytesIO()
    _noise_image().save(buffer, "JPEG", quality=90)
    data, config = buffer.getvalue(), DecodeConfig()

    def work() -> None:
        np.asarray(decode_image(data, config).resize((224, 224), Image.Resampling.BICUBIC))

    return _per_second(work, _SECONDS / 2)


def _noise_image() -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (_IMAGE_SIDE // 8, _IMAGE_SIDE // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC)
