"""Runs in the peer's environment: indexes a folder with `clip-retrieval index` (once) and serves it with `clip back`.

Arguments: folder with img_emb/ and metadata/, folder for the index, port, ViT-B/32 checkpoint. Listens on 127.0.0.1
only; options that would download models are off.
"""

import json
import subprocess
import sys
from pathlib import Path


def main(folder: str, index: str, port: str, checkpoint: str) -> None:
    import flask
    from clip_retrieval.clip_back import clip_back

    if not Path(index, "image.index").exists():
        Path(index).mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).parent / "clip-retrieval"), "index", "--embeddings_folder", folder]
        command += ["--index_folder", index, "--max_index_memory_usage", "4G", "--current_memory_available", "16G"]
        subprocess.run([*command, "--nb_cores", "2"], check=True)
    indices = Path(index, "indices.json")
    indices.write_text(json.dumps({"bench": index}))
    run = flask.Flask.run
    flask.Flask.run = lambda self, host=None, port=None, **options: run(self, host="127.0.0.1", port=port, **options)
    clip_back(
        indices_paths=str(indices), port=int(port), clip_model=f"open_clip:ViT-B-32/{checkpoint}", use_jit=False,
        enable_mclip_option=False, provide_aesthetic_embeddings=False, enable_hdf5=False, use_arrow=False,
        columns_to_return=["image_path", "caption"],
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
