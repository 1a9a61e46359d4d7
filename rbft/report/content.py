"""All that the report says, before it is a page or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbft.report.attention import attention_section
from rbft.report.calibration import calibration_section
from rbft.report.conditions import Conditions
from rbft.report.costs import cost_section, settings_section
from rbft.report.gather import Gathered
from rbft.report.groups import Group, group_runs
from rbft.report.masking import masked
from rbft.report.paper import paper_section
from rbft.report.results import Result
from rbft.report.scores import all_scores, differences, over_seeds, overview
from rbft.report.tables import Section


@dataclass(frozen=True)
class Content:
    """What the report says.

    Attributes:
        gathered: The runs.
        conditions: How they were scored.
        groups: Runs that differ in seeds alone.
        sections: Tables, in order.
    """

    gathered: Gathered
    conditions: Conditions
    groups: Sequence[Group]
    sections: tuple[Section, ...]

    @property
    def finals(self) -> list[Result]:
        """Final results of all runs that have some."""
        return [one.final for one in self.gathered.runs if one.final is not None]


def build_content(gathered: Gathered) -> Content:
    """Puts everything into tables.

    Args:
        gathered: The runs.
    """
    conditions = Conditions([one for run in gathered.runs for one in run.results])
    groups = group_runs(gathered.runs, conditions)
    sections = (
        overview(gathered),
        paper_section(gathered, groups, conditions),
        all_scores(gathered, conditions),
        over_seeds(gathered, groups, conditions),
        differences(groups, conditions),
        calibration_section(gathered, conditions),
        masked(gathered, conditions),
        attention_section(gathered),
        cost_section(gathered),
        settings_section(gathered),
    )
    return Content(gathered, conditions, groups, sections)
