"""One call of Helm's library: a request as JSON on standard input, {"ok": …} or {"error": …} on standard output."""

import json
import sys

import helm_python as helm


def call(request):
    verb, chart, values = request["do"], request.get("chart"), request.get("values")
    if verb == "lint":
        return helm.lint(chart, values, strict=True)
    if verb == "render":
        loaded = helm.Chart.load(chart)
        loaded.validate_schema(values)
        return loaded.render(values, name=request["name"], namespace=request["namespace"])
    with helm.Config(kubeconfig_path=request["kubeconfig"], namespace=request["namespace"]) as config:
        if verb == "install":
            return config.install(chart, request["name"], values, namespace=request["namespace"], timeout=60)
        if verb == "upgrade":
            return config.upgrade(chart, request["name"], values, namespace=request["namespace"], timeout=60)
        if verb == "uninstall":
            return config.uninstall(request["name"], timeout=60)
    raise ValueError(f"unknown request {verb}")


try:
    answer = {"ok": call(json.load(sys.stdin))}
except helm.HelmError as error:
    answer = {"error": str(error)}
json.dump(answer, sys.stdout)
