#!/usr/bin/env python
"""The speed table: seconds from a text to its images, by dot product, with re-ranking, and by cross-attention alone.

python scripts/bench_retrieval.py --out benchmarks/retrieval_cpu.json          # the whole table; half an hour on two CPU cores
python scripts/bench_retrieval.py --galleries 1000 5000 --backends exact hnsw  # a part of it
python scripts/bench_retrieval.py --device cuda --precision fp32 fp16 --out benchmarks/retrieval_gpu.json   # on a GPU

Models have their real sizes (BERT-base) and random weights, which are as fast as trained ones. A region database with random
features is written, encoded and read again by the re-ranker. Vectors of the large galleries are drawn, as encoding a million
images takes hours: their covariance falls as that of a trained model's image embeddings does, and queries have the cosine
with an image that captions have there (see ``scripts/benchmarking/galleries.py``), for on these two the approximate searches depend.

All systems are measured in turns, round after round in one run, so that a machine that speeds up or slows down does so for
all of them. Cross-attention is measured on the re-ranker's pairs, and multiplied by the size of the gallery.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import torch

from data.storage.locks import claim_output
from data.storage.text_files import write_json
from model.precision import choose_device
from scripts.benchmarking.measuring import refuse_plot_in_results
from scripts.benchmarking.retrieval_models import RetrievalSettings
from scripts.benchmarking.retrieval_report import plot, print_table
from scripts.benchmarking.retrieval_times import measured_results
from scripts.benchmarking.work_folder import work_folder


@dataclass
class Options(RetrievalSettings):
    """Measure retrieval on galleries of several sizes.

    Args:
        out: JSON file to write; the same name with .png gets the plot
        work: folder for models, databases and indexes, some 6 GB with a million images; deleted at the end
        device: auto, cpu, cuda or cuda:N
        threads: of the CPU; 0: as torch chooses
    """

    out: str = "benchmarks/retrieval.json"
    work: str = "bench_retrieval_work"
    device: str = "auto"
    threads: int = 0

    def __post_init__(self):
        super().__post_init__()
        refuse_plot_in_results(self.out)


def main(options: Options) -> None:
    claim_output(options.out)
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    with work_folder(options.work) as work:
        results = measured_results(options, work, device)
    results["options"] = {name: value for name, value in cli.to_dict(options).items() if name not in ("work", "out")}
    write_json(options.out, results)
    print_table(results)
    plot(results, Path(options.out).with_suffix(".png"))
    print(f"results: {options.out} and {Path(options.out).with_suffix('.png')}")


if __name__ == "__main__":
    cli.run(main, Options, often="out galleries backends target_recall k rerank_top precision hidden_size num_hidden_layers rounds seconds work device threads")
