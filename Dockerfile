# hpsearch with PyTorch, for CPUs and NVIDIA GPUs. Build: docker build -t hpsearch .
# One image for the worker, the dashboard and every command; it runs as a user of its own and writes only to
# /var/lib/hpsearch and /tmp. Versions are those of constraints.txt, which `make constraints` writes.
FROM python:3.12.12-slim-bookworm AS build
ENV VIRTUAL_ENV=/opt/hpsearch PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv "$VIRTUAL_ENV" \
    && "$VIRTUAL_ENV/bin/pip" install --constraint constraints.txt torch torchvision
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY hpsearch ./hpsearch
COPY studies ./studies
RUN "$VIRTUAL_ENV/bin/pip" install --constraint constraints.txt ".[s3]" \
    && "$VIRTUAL_ENV/bin/hpsearch" --version

FROM python:3.12.12-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home hpsearch \
    && install --directory --owner hpsearch --group hpsearch /var/lib/hpsearch
COPY --from=build /opt/hpsearch /opt/hpsearch
ENV PATH=/opt/hpsearch/bin:$PATH PYTHONUNBUFFERED=1 HPSEARCH_HOME=/var/lib/hpsearch
USER 10001:10001
WORKDIR /var/lib/hpsearch
VOLUME /var/lib/hpsearch
ENTRYPOINT ["hpsearch"]
CMD ["--help"]
