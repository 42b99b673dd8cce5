"""Find out in seconds, before a long run, whether a set-up is right."""

from limbeck.checkup.examine import check as check
from limbeck.checkup.examine import vet as vet
from limbeck.checkup.findings import Checkup as Checkup
from limbeck.checkup.findings import Finding as Finding
from limbeck.checkup.findings import Status as Status
from limbeck.checkup.findings import TermCheck as TermCheck
from limbeck.checkup.table import console_table as console_table
