from .attention import *
from .experts import *
from .matmul import *
from .reference import *
