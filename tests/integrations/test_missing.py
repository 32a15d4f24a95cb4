"""Without the software of an extra its module says how to get it; the pool does not need it."""

import pytest
from conftest import output, python


@pytest.mark.parametrize(("module", "package"), [("otel", "opentelemetry"), ("prometheus", "prometheus_client")])
def test_a_module_says_which_extra_it_needs(module, package):
    program = f"""
        import sys
        sys.modules[{package!r}] = None
        try:
            import pgdbpool.integrations.{module}
        except ModuleNotFoundError as error:
            print(error)
    """
    assert output(python(program)).endswith(f"; pip install 'pgdbpool[{module}]'\n")


def test_no_pool_loads_any_of_it():
    program = """
        import sys
        from pgdbpool import AsyncPool, Pool, pool
        Pool({"db": {"host": "h"}, "groups": {"g": {"leak_threshold": 1}}}, open=False)
        print(*[name for name in sys.modules if name.startswith(("pgdbpool.integ", "opentel", "prometheus"))])
    """
    assert output(python(program)) == "\n"
