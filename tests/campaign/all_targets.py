"""Every target of the campaign."""

from tests.campaign.readers import READ_WHILE_REPLACED
from tests.campaign.soak import Soak
from tests.campaign.targets import FILES
from tests.campaign.typed import ENVIRONMENTS, WORDS
from tests.campaign.writers import DISTURBED

TARGETS = [*FILES, *WORDS, *ENVIRONMENTS, *DISTURBED, *READ_WHILE_REPLACED, Soak()]
