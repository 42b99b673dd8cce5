"""Find out in seconds, before a long run, whether a set-up is right."""

from limbeck.verbs.check.examine import check as check
from limbeck.verbs.check.examine import vet as vet
from limbeck.verbs.check.examine import vet_teacher as vet_teacher
from limbeck.verbs.check.findings import Checkup as Checkup
from limbeck.verbs.check.findings import Finding as Finding
from limbeck.verbs.check.findings import Status as Status
from limbeck.verbs.check.findings import TermCheck as TermCheck
from limbeck.verbs.check.table import console_table as console_table
