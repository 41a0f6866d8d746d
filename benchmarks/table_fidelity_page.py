"""The page of table_fidelity.py's result."""

from __future__ import annotations

from typing import Any


def page(summary: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        f"# {summary['question']}",
        "",
        f"AutoRTNet at 360x480 on {summary['backend']}, "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + f", one thread, {summary['date']}; {summary['hogged_cores']} cores hogged. "
        "Written by benchmarks/table_fidelity.py.",
        "",
    ]
    if "refused" in summary:
        return "\n".join([*lines, "Refused:", "", "    " + summary["refused"].replace("\n", "\n    "), ""])
    if "probe" in summary:
        lines += [
            f"{summary['probe']['calibrated']['networks']} networks in no fit; a calibration from "
            f"{summary['probe']['calibration']['networks']} others. The tables were begun at "
            f"{' and '.join(summary['builds']['begun'])}, and the networks were measured by "
            f"{summary['networks_measured']}.",
            "",
            "| protocol | | RMSPE % | ±5 % | ±10 % | Kendall tau | bias |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in ("isolated", "probe"):
            for kind in ("uncalibrated", "calibrated"):
                scores = summary[name][kind]
                lines.append(
                    f"| {name} | {kind} | {scores['rmspe_percent']:.2f} | {scores['within_5']:.0f} "
                    f"| {scores['within_10']:.0f} | {scores['kendall_tau']:.3f} | {scores['bias']:.3f} |"
                )
        said = summary["probe"]
        lines += [
            "",
            f"The measurements' own Kendall tau, process against process: {said['repeat_kendall_tau']:.3f}.",
            "",
        ]
        for name in ("isolated", "probe"):
            of_one = summary[name]["of_one_depth"]
            low, high = of_one["range_ms"]
            lines.append(
                f"Kendall tau among {of_one['networks']} networks of one depth ({low:.1f} to {high:.1f} ms), "
                f"{name}: {of_one['kendall_tau']:.3f} (the measurements' own: "
                f"{of_one['repeat_kendall_tau']:.3f})."
            )
    if "networks_refused" in summary:
        lines += ["Networks that are in no fit gave no numbers:", "", f"    {summary['networks_refused']}"]
    builds = summary["builds"]
    lines += [
        "",
        "| two builds | entries, median % | p95 % | as a whole % | beyond that, median % | p95 % "
        "| intervals hold % | networks, median % | max % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("isolated", "probe"):
        rows, networks = builds[name], builds[f"networks_{name}"]
        lines.append(
            f"| {name} | {rows['median_percent']:.2f} | {rows['p95_percent']:.2f} "
            f"| {rows['as_a_whole_percent']:+.2f} | {rows['beyond_median_percent']:.2f} "
            f"| {rows['beyond_p95_percent']:.2f} | {rows['intervals_hold_percent']:.0f} "
            f"| {networks['median_percent']:.2f} | {networks['max_percent']:.2f} |"
        )
    lines += [
        "",
        "Ops alone, the same rounds of the two builds summarised in several ways, beyond the whole:",
        "",
        "| rounds' | median % | p95 % |",
        "|---|---|---|",
    ]
    for name, off in builds["by_statistic"].items():
        lines.append(f"| {name} | {off['median_percent']:.2f} | {off['p95_percent']:.2f} |")
    first, second = builds["measuring_seconds"]
    alone = builds["isolated_measuring_seconds"]
    told = "unknown (that measurement was refused or failed)" if alone is None else f"{alone:.0f} s"
    lines += [
        "",
        f"Measuring took {first:.0f} and {second:.0f} s (ops and networks, {builds['rounds'][0]} and "
        f"{builds['rounds'][1]} rounds), ops alone {told}. With building and loading what is measured a "
        f"table takes {builds['seconds'][0]:.0f} and {builds['seconds'][1]:.0f} s.",
    ]
    found = builds["scatter"]
    visits = found["between_visits_percent"]
    lines += [
        "",
        f"Readings of an op alone differ by {found['within_a_visit_percent']:.2f} % within a visit; "
        + ("" if visits is None else f"visits by {visits:.2f} % within a process; ")
        + f"processes by {found['between_processes_percent']:.2f} %, and one op in twenty by more than "
        f"{found['processes_apart_p95_percent']:.1f} % from the quickest to the slowest.",
    ]
    levels = " and ".join(
        f"{level['fixed_scale']:.3f} for what every network runs, {level['scale']:.3f} for the rest and "
        f"{0.0 - 1000 * level['call_ms']:+.1f} µs a call"
        for level in builds["level"]
    )
    lines.append(f"Ops alone were brought to the networks' level, in the two builds, by {levels}.")
    if "million_predictions_seconds" in summary:
        lines.append(f"A million predictions take {summary['million_predictions_seconds']:.2f} s.")
    lines += [f"Remark: {remark}" for remark in builds["remarks"]]
    return "\n".join([*lines, ""])
