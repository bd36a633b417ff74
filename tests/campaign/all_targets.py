"""Every target of the campaign."""

from tests.campaign.soak import Soak
from tests.campaign.targets import FILES
from tests.campaign.typed import ENVIRONMENTS, WORDS
from tests.campaign.writers import DISTURBED

TARGETS = [*FILES, *WORDS, *ENVIRONMENTS, *DISTURBED, Soak()]
