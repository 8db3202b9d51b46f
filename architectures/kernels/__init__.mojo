from .attention import *
from .experts import *
from .matmul import *
