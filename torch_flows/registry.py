"""The types that ``build`` and ``load`` know."""

from flow_bridge.architecture import Registry

registry = Registry("torch_flows")
register = registry.register
build = registry.build
register_network = registry.register_network
