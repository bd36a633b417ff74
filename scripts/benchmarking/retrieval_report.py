"""The speed table and its plot: what scripts/bench_retrieval.py measured, shown."""

from __future__ import annotations

from pathlib import Path

from data.storage.atomic import atomic_file

FLAT = "faiss.IndexFlatIP"  # the exact search that ours is compared with
PUBLISHED = {1000: 639, 5000: 2349, 123287: 23869}  # x faster than UNITER-base: Sun et al., NAACL 2021, on a GPU
BATCH = 100  # queries asked together


def print_table(results: dict) -> None:
    """The paper's table, seconds of one query, alone and of a batch, and how many times faster than cross-attention; then the
    searches alone."""
    print(f"\n{results['device']}, {results['environment']['threads']} threads")
    for precision, each in results["models"].items():
        one = each["text_encoding"]["one"]
        print(f"\n{precision}: text {one['median'] * 1e3:.1f} ms ({one['min'] * 1e3:.1f} to {one['max'] * 1e3:.1f})", end="")
        print(f", {each['image_encoding_per_second']:.1f} images encoded per second, cross-attention", end=" ")
        print(f"{each['cross_attention_seconds_per_pair'] * 1e3:.1f} ms a pair, which is extrapolated")
        print(f"{'images':>9} {'cross-att.':>11}  {'search':8}{'s/query':>9}{'x faster':>10}", end="")
        print(f"{f'of {BATCH}':>9}{'x faster':>10}", end="")
        print("".join(f"{f'+top {k}':>10}{'x faster':>10}" for k in each["reranking"]), f"{'paper':>8}")
        for row in results["galleries"]:
            for name in results["options"]["backends"]:
                own = row[precision][name]
                print(f"{row['images']:9,} {row[precision]['cross_attention_seconds']:10.1f}s  {name:8}", end="")
                print(f"{own['answer']['median']:9.4f}{own['times_faster']:10,.0f}", end="")
                print(f"{own['in_batches']['seconds']:9.4f}{own['in_batches']['times_faster']:10,.0f}", end="")
                for again in own["with_reranking"].values():
                    print(f"{again['seconds']:10.3f}{again['times_faster']:10,.0f}", end="")
                published = PUBLISHED.get(row["images"])
                print(f" {f'{published:,}' if published and name == 'exact' else '':>8}")
    print(f"\n{'images':>9}  {'search':18}{'ms':>8}{'spread':>17}{'batch ms':>10}{'recall':>8}{'built s':>9}", end="")
    print(f"{'file GiB':>10}{'open ms':>9}{'GiB open':>9}")
    for row in results["galleries"]:
        for name, each in row["search"].items():
            alone, together = each["one"], each[f"batch of {BATCH}"]["median"] * 1e3
            own = row.get(name, {})
            built, size = own.get("build_seconds"), own.get("file_bytes")
            if name == "exact":
                built, size = row["index_seconds"], row["index_bytes"]
            print(f"{row['images']:9,}  {name:18}{alone['median'] * 1e3:8.3f}", end="")
            print(f"{alone['min'] * 1e3:9.3f}–{alone['max'] * 1e3:<7.3f}{together:10.2f}{own.get('recall', 1):8.4f}", end="")
            print(f"{built:9.1f}" if built else f"{'':9}", f"{size / 2**30:9.3f}" if size else f"{'':9}", end="")
            opened = row["opening"]
            print(f"{opened['seconds'] * 1e3:9.2f}{opened['bytes'] / 2**30:9.3f}" if name == "exact" else "")


def plot(results: dict, path: Path) -> None:
    """Seconds of a query over the size of the gallery, both logarithmic."""

    import matplotlib  # slow to import

    matplotlib.use("agg")  # before pyplot: there may be no screen
    from matplotlib import pyplot as plt  # slow to import

    rows = results["galleries"]
    sizes = [row["images"] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 5))
    precision = results["options"]["precision"][-1]
    cross = [row[precision]["cross_attention_seconds"] for row in rows]
    axes.plot(sizes, cross, "k--o", label="UNITER over all images (extrapolated)")
    for name in results["options"]["backends"]:
        axes.plot(sizes, [row[precision][name]["answer"]["median"] for row in rows], "-o", label=f"LightningDOT, {name}")
    k, name = next(iter(results["models"][precision]["reranking"])), results["options"]["backends"][0]
    again = [row[precision][name]["with_reranking"][k]["seconds"] for row in rows]
    axes.plot(sizes, again, ":o", label=f"LightningDOT, {name}, best {k} ranked again")
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="seconds of a query")
    axes.set_title(f"{results['device']}, {precision}", fontsize=9)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
