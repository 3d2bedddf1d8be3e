"""Whether requests are traced: only where a collector is set, and then by the extra `otel`.

Owns that decision. Imports OpenTelemetry for nobody else.
"""

from server.ports import Traces
from server.settings import Settings, SettingsError


def traces_of(settings: Settings) -> Traces | None:
    """Raises SettingsError, which names the extra to install, before anything heavy is loaded."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.traces import exported_to
    except ImportError as error:
        raise SettingsError(
            f"--otlp-endpoint needs OpenTelemetry ({error.name} is not there): pip install 'rootstock[otel]'"
        ) from None
    return exported_to(settings.otlp_endpoint, settings.base)
