"""Print a Markdown table with one ratio per row, the machine's load, and the error of each sampler."""

import os

import torch

from benchmarks import latent_reader, samplers, training_step


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| what | first | second | ms | ms | second is faster by |")
    print("|---|---|---|---:|---:|---:|")
    for module in (training_step, latent_reader):
        for row in module.ratios():
            print(f"| {row.what} | {row.slow} | {row.fast} | {row.slow_ms:.0f} | {row.fast_ms:.0f} | {row.ratio:.2f} |", flush=True)
    samplers.print_tables()


if __name__ == "__main__":
    main()
