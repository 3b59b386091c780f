"""Looking at what is here."""

from dataclasses import asdict

from cssoftmax.cli.console import DataRoot, Json, Quiet, explained, out, print_json
from cssoftmax.doctor import examine


@explained
def doctor(data_root: DataRoot = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Say which versions, devices and data are here, what is missing, and how to get it.

    \b
    Examples:
      cssoftmax doctor
      cssoftmax doctor --data-root ~/data --json
    """
    findings = examine(data_root)
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    width = max(len(finding.name) for finding in findings)
    topic = ""
    for finding in findings:
        if quiet and finding.remedy is None:
            continue
        if finding.topic != topic:
            topic = finding.topic
            out.print(f"{topic}:", markup=False)
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        out.print(f"  {finding.name:<{width}}  {finding.found}{remedy}", markup=False)
