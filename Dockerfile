# finelens serve on a CPU, from the wheel and with the versions that CI tested; see docs/serve.md.
#   docker build -t finelens-serve .
#   docker run -p 8000:8000 -v "$PWD/run:/model:ro" -e FINELENS_TOKEN finelens-serve
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
# The second index has torch without CUDA.
RUN wheel=$(ls /wheels/finelens-*.whl) \
    && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c /tmp/constraints.txt "finelens[serve] @ file://$wheel" \
    && rm -r /wheels /tmp/constraints.txt \
    && useradd --create-home finelens
USER finelens
EXPOSE 8000
# As process 1 it gets SIGTERM itself, answers what is under way and ends.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["finelens", "serve", "/model", "--host", "0.0.0.0"]
