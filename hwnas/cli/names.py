"""The names that the command line knows: those of :mod:`hwnas.names`."""

from hwnas.names import find_backend as find_backend
from hwnas.names import find_space as find_space
from hwnas.names import known_backends as known_backends
from hwnas.names import known_spaces as known_spaces
from hwnas.names import space_of as space_of
