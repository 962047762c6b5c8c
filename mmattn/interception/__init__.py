"""One point at which every model's attention is read and written."""

from mmattn.interception.calls import Call as Call
from mmattn.interception.calls import Emit as Emit
from mmattn.interception.calls import Tap as Tap
from mmattn.interception.formula import attention_weights as attention_weights
from mmattn.interception.formula import weights_of as weights_of
from mmattn.interception.intervene import intervene as intervene
from mmattn.interception.record import Recording as Recording
from mmattn.interception.record import capture as capture
