"""The picture of a training run: losses, perplexity on validation, learning rate, over steps."""

from pathlib import Path

COLOURS = {
    "loss": "#1f2937",
    "kl": "#c2410c",
    "ce": "#0f766e",
    "val_ppl": "#7c3aed",
    "mix_ppl": "#2563eb",
    "lr": "#6b7280",
}
LABELS = {
    "kl": "KL(kNN ‖ memory)",
    "ce": "cross-entropy",
    "val_ppl": "memory alone",
    "mix_ppl": "mixed with the decoder",
}
PANELS = {  # title of the vertical axis: (which figures, whether it is logarithmic)
    "training loss, nats a token": (("loss", "kl", "ce"), False),
    "validation perplexity": (("val_ppl", "mix_ppl"), True),
    "learning rate": (("lr",), False),
}


def draw_training(history: list[dict], path: Path, title: str) -> None:
    """Write a picture (PNG, SVG ... by the path's suffix) of a log as `fit` returns it.

    Panels of which the log has no figure are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {name: p for name, p in PANELS.items() if any(k in history[-1] for k in p[0])}
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {history[-1]['step']:,} steps", x=0.01, ha="left", fontsize=11)
    for axes, (name, (keys, logarithmic)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for key in (k for k in keys if k in history[-1]):
            points = [(line["step"], line[key]) for line in history]
            axes.plot(*zip(*points, strict=True), color=COLOURS[key], lw=1.6)
            axes.plot(*points[-1], "o", color=COLOURS[key], ms=3.5, label=_label(key, points[-1]))
        axes.set_title(name, loc="left", fontsize=9, color="#374151")
        axes.set_xlabel("step", fontsize=8)
        axes.set_xlim(left=0)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e5e7eb", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _label(key: str, last: tuple[int, float]) -> str:
    """Return what the legend says of a line, its last value included."""
    return f"{LABELS.get(key, key)}  {last[1]:.3g}"
