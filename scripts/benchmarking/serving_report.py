"""What scripts/bench_serve.py measured, shown."""

from __future__ import annotations

from pathlib import Path

from data.storage.atomic import atomic_file


def print_table(results: dict) -> None:
    """Requests per second and milliseconds of both ways to serve, by the number of clients; then the mixed load."""
    print(f"\n{results['device']}, {results['environment']['threads']} threads, {results['options']['precision']}")
    for gallery in results["galleries"]:
        print(f"\n{gallery['name']}\n{'clients':>8}  {'served':14}{'per second':>11}{'median ms':>11}{'95%':>9}{'99%':>9}{'wrong':>7}{'503':>7}")
        for row in gallery["loads"]:
            for name in ("one at a time", "together"):
                each = row[name]
                print(f"{row['clients']:8}  {name:14}{each['requests_per_second']:11.1f}{each['median_ms']:11.1f}{each['p95_ms']:9.1f}", end="")
                print(f"{each['p99_ms']:9.1f}{each['wrong']:7}{each['statuses'].get('503', 0):7}")
            print(f"{'':10}{row['times']:.2f} times the throughput")
    if mixed := results["mixed"]:
        print(f"\nmixed load on {mixed['name']}: {mixed['answers']:,} answers, {mixed['wrong']} wrong, statuses {mixed['statuses']}, ", end="")
        print(f"{mixed['updates']} updates of the index; memory grew by {mixed['grown_bytes'] / 2**20:.1f} MiB of ", end="")
        print(f"{mixed['memory'][-1]['own_bytes'] / 2**20:.0f}")


def plot(results: dict, path: Path) -> None:
    """Throughput over clients for each gallery, and the memory of the mixed load."""
    import matplotlib  # slow to import

    matplotlib.use("agg")  # before pyplot: there may be no screen
    from matplotlib import pyplot as plt  # slow to import

    galleries, mixed = results["galleries"], results["mixed"]
    panels = len(galleries) + bool(mixed)
    figure, every = plt.subplots(1, panels, figsize=(5 * panels, 4), squeeze=False)
    for axes, gallery in zip(every[0], galleries):
        clients = [row["clients"] for row in gallery["loads"]]
        for name in ("together", "one at a time"):
            axes.plot(clients, [row[name]["requests_per_second"] for row in gallery["loads"]], marker="o", label=name)
        axes.set(title=gallery["name"], xlabel="clients", ylabel="requests per second", xscale="log", ylim=(0, None))
        axes.set_xticks(clients, [str(number) for number in clients])
        axes.minorticks_off()
        axes.legend()
    if mixed:
        axes, samples = every[0][-1], mixed["memory"]
        for name, label in (("bytes", "with mapped files"), ("own_bytes", "its own")):
            axes.plot([each["seconds"] / 60 for each in samples], [each[name] / 2**20 for each in samples], label=label)
        axes.set(title=f"memory, mixed load on {mixed['name']}", xlabel="minutes", ylabel="MiB", ylim=(0, None))
        axes.legend()
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
